"""The renderer's programs (GLSL 330). One pass writes colour, depth, instance and normal into one integer texture."""

VERTEX_SHADER = """
#version 330
uniform mat4 world_to_view;   // OpenCV axes: x right, y down, z ahead
uniform vec4 lens;            // 2 fx / W, 2 fy / H, 2 cx / W - 1, 2 cy / H - 1
in vec3 position; in ivec4 normal; in vec2 uv; in vec4 colour; in uvec2 layer_id;
out vec3 world; out vec3 view; out vec3 smooth_normal; out vec2 at; out vec4 paint;
flat out uvec2 tag; flat out float glow;
const float NEAR = 0.05, FAR = 30.0;
void main() {
    vec4 v = world_to_view * vec4(position, 1.0);
    world = position; view = v.xyz; smooth_normal = vec3(normal.xyz) / 127.0; glow = float(normal.w) / 127.0;
    at = uv; paint = colour; tag = layer_id;
    // row 0 of the texture is the top row of the image: y is not flipped
    gl_Position = vec4(lens.x * v.x + lens.z * v.z, lens.y * v.y + lens.w * v.z,
                       ((FAR + NEAR) * v.z - 2.0 * FAR * NEAR) / (FAR - NEAR), v.z);
}
"""

FRAGMENT_SHADER = """
#version 330
uniform sampler2DArray textures;
uniform sampler2D shadow;             // metres along the main light's axis
uniform mat4 world_to_light;
uniform vec3 light_at[4]; uniform vec3 light_colour[4]; uniform int lights;
uniform vec3 above; uniform vec3 below; uniform vec3 room; uniform vec3 eye;
uniform mat3 world_turn;              // view to world
uniform float exposure; uniform float noise; uniform uint seed; uniform float shadow_reach;
in vec3 world; in vec3 view; in vec3 smooth_normal; in vec2 at; in vec4 paint;
flat in uvec2 tag; flat in float glow;
out uvec4 data;                       // depth bits, instance, normal (4 x snorm8), colour (4 x unorm8)

uint hash(uint x) { x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; return x ^ (x >> 16); }

float lit(vec3 n) {                   // share of the main light that arrives: four smooth 2x2 lookups
    vec4 l = world_to_light * vec4(world + 0.02 * n, 1.0);
    if (l.z < 0.1) return 1.0;
    vec2 uv = l.xy / (l.z * shadow_reach) * 0.5 + 0.5;
    if (any(lessThan(uv, vec2(0.005))) || any(greaterThan(uv, vec2(0.995)))) return 1.0;
    vec2 size = vec2(textureSize(shadow, 0));
    float sum = 0.0;
    for (int i = 0; i < 4; i++) {
        vec2 p = uv * size + 1.6 * vec2(i == 0 ? -1.0 : i == 1 ? 1.0 : 0.4 * float(i - 2) - 0.2, i == 2 ? -1.0 : i == 3 ? 1.0 : 0.2 - 0.4 * float(i)) - 0.5;
        vec2 f = fract(p); ivec2 b = ivec2(floor(p));
        vec4 d = vec4(texelFetch(shadow, b, 0).r, texelFetch(shadow, b + ivec2(1, 0), 0).r,
                      texelFetch(shadow, b + ivec2(0, 1), 0).r, texelFetch(shadow, b + ivec2(1, 1), 0).r);
        vec4 open = step(vec4(l.z - 0.03), d);
        sum += mix(mix(open.x, open.y, f.x), mix(open.z, open.w, f.x), f.y);
    }
    return sum * 0.25;
}

float corner(float d, float side) { float q = max(d, 0.0) / 0.22; return 1.0 - 0.34 * (1.0 - side) / (1.0 + q * q); }

void main() {
    vec3 flat_normal = normalize(cross(dFdx(view), dFdy(view)));
    if (dot(flat_normal, view) > 0.0) flat_normal = -flat_normal;
    vec3 ng = world_turn * flat_normal;
    vec3 n = dot(smooth_normal, smooth_normal) > 0.01 ? normalize(smooth_normal) : ng;
    if (dot(n, ng) < 0.0) n = -n;
    if (dot(n, ng) < 0.25) n = ng;

    vec3 base = paint.rgb;
    if (tag.x != 65535u) base *= texture(textures, vec3(at, float(tag.x))).rgb;
    base = pow(base, vec3(2.2)) * 0.92 + 0.004;

    vec3 a = abs(n), far = room - world;
    float open = corner(world.x, a.x) * corner(far.x, a.x) * corner(world.y, a.y) * corner(far.y, a.y)
               * corner(world.z, a.z) * corner(far.z, a.z);
    vec3 light = mix(below, above, n.z * 0.5 + 0.5) * open;
    vec3 shine = vec3(0.0), to_eye = normalize(eye - world);
    for (int i = 0; i < lights; i++) {
        vec3 to = light_at[i] - world;
        float d2 = dot(to, to);
        to *= inversesqrt(d2);
        float facing = max(dot(n, to), 0.0) * (i == 0 ? lit(ng) : 1.0) / (1.0 + d2);
        light += light_colour[i] * facing;
        shine += light_colour[i] * facing * pow(max(dot(n, normalize(to + to_eye)), 0.0), 40.0);
    }
    vec3 c = (base * light + paint.a * 1.5 * shine) * exposure + base * glow * 2.5;
    c = clamp((c * (2.51 * c + 0.03)) / (c * (2.43 * c + 0.59) + 0.14), 0.0, 1.0);   // ACES, Narkowicz's fit
    c = pow(c, vec3(1.0 / 2.2));

    uint h = hash(uint(gl_FragCoord.x) + 4096u * uint(gl_FragCoord.y) + seed * 0x9e3779b9u), h2 = hash(h + 1u);
    vec3 grain = vec3(h & 1023u, (h >> 10) & 1023u, (h >> 20) & 1023u)
               + vec3(h2 & 1023u, (h2 >> 10) & 1023u, (h2 >> 20) & 1023u);
    c += noise * (grain / 1023.0 - 1.0);

    vec4 small = vec4(flat_normal, 0.0);
    ivec4 s = ivec4(round(clamp(small, -1.0, 1.0) * 127.0)) & 255;
    ivec3 k = ivec3(round(clamp(c, 0.0, 1.0) * 255.0));
    data = uvec4(floatBitsToUint(view.z), tag.y, uint(s.x | (s.y << 8) | (s.z << 16)), uint(k.x | (k.y << 8) | (k.z << 16)));
}
"""

SHADOW_VERTEX = """
#version 330
uniform mat4 world_to_light; uniform float shadow_reach;
in vec3 position;
out float ahead;
void main() {
    vec4 v = world_to_light * vec4(position, 1.0);
    ahead = v.z;
    gl_Position = vec4(v.xy / shadow_reach, (12.1 * v.z - 2.4) / 11.9, v.z);   // 0.1 to 12 m
}
"""

SHADOW_FRAGMENT = """
#version 330
in float ahead;
out float metres;
void main() { metres = ahead; }
"""
