"""The renderer's GLSL 330 programs: colour, depth, instance and normal in one pass, then FXAA."""

VERTEX_SHADER = """
#version 330
uniform mat4 move;            // of a moving piece, in the world
uniform mat4 world_to_view;   // OpenCV axes: x right, y down, z ahead
uniform vec4 front;           // plane of the mirror: what is behind it is not reflected
uniform vec4 lens;            // 2 fx / W, 2 fy / H, 2 cx / W - 1, 2 cy / H - 1
in vec3 position; in ivec4 normal; in vec2 uv; in vec4 colour; in uvec2 layer_id;
out vec3 world; out vec3 view; out vec3 smooth_normal; out vec2 at; out vec4 paint;
flat out uvec2 tag; flat out float glow;
const float NEAR = 0.05, FAR = 30.0;
void main() {
    vec4 moved = move * vec4(position, 1.0);
    vec4 v = world_to_view * moved;
    gl_ClipDistance[0] = dot(front, moved);
    world = moved.xyz; view = v.xyz; smooth_normal = mat3(move) * vec3(normal.xyz) / 127.0;
    glow = float(normal.w) / 127.0;
    at = uv; paint = colour; tag = layer_id;
    // row 0 of the texture is the top row of the image: y is not flipped
    gl_Position = vec4(lens.x * v.x + lens.z * v.z, lens.y * v.y + lens.w * v.z,
                       ((FAR + NEAR) * v.z - 2.0 * FAR * NEAR) / (FAR - NEAR), v.z);
}
"""

FRAGMENT_SHADER = """
#version 330
uniform sampler2DArray textures;
uniform sampler2D shadow;             // metres along the main light's axis, and their square
uniform mat4 world_to_light;
uniform vec3 light_at[4]; uniform vec3 light_colour[4]; uniform int lights;
uniform vec3 above; uniform vec3 below; uniform vec3 room; uniform vec3 eye;
uniform mat3 world_turn;              // view to world
uniform float exposure; uniform float shadow_reach; uniform float glow_strength;
uniform sampler2D reflection; uniform int first_row;  // of the frame in `picture`
in vec3 world; in vec3 view; in vec3 smooth_normal; in vec2 at; in vec4 paint;
flat in uvec2 tag; flat in float glow;
layout(location = 0) out vec4 picture;
layout(location = 1) out uvec4 data;  // depth bits, instance, normal (3 x snorm8), nothing

// share of the main light that arrives: a variance shadow map (Donnelly & Lauritzen 2006)
float lit(vec3 n) {
    vec4 l = world_to_light * vec4(world + 0.01 * n, 1.0);
    vec2 uv = l.xy / (max(l.z, 0.1) * shadow_reach) * 0.5 + 0.5;
    vec2 m = textureLod(shadow, uv, 1.3).rg;
    float variance = max(m.y - m.x * m.x, 2e-4), past = l.z - m.x;
    float open = past <= 0.0 ? 1.0 : smoothstep(0.15, 1.0, variance / (variance + past * past));
    vec2 rim = smoothstep(vec2(0.0), vec2(0.03), uv) * smoothstep(vec2(0.0), vec2(0.03), 1.0 - uv);
    return l.z < 0.1 ? 1.0 : mix(1.0, open, rim.x * rim.y);
}

float corner(float d, float side) {
    float q = max(d, 0.0) / 0.22;
    return 1.0 - 0.34 * (1.0 - side) / (1.0 + q * q);
}

vec4 shaded(vec3 ng) {
    if (tag.x == 65533u) {
        ivec2 px = ivec2(gl_FragCoord.xy) - ivec2(0, first_row);
        return vec4(texelFetch(reflection, px, 0).rgb * paint.rgb, 1.0);
    }
    vec3 n = dot(smooth_normal, smooth_normal) > 0.01 ? normalize(smooth_normal) : ng;
    if (dot(n, ng) < 0.0) n = -n;
    if (dot(n, ng) < 0.25) n = ng;
    vec3 base = paint.rgb;
    if (tag.x < 65533u) base *= texture(textures, vec3(at, float(tag.x))).rgb;
    base = pow(base, vec3(2.2)) * 0.92 + 0.004;
    vec3 a = abs(n), far = room - world;
    float open = corner(world.x, a.x) * corner(far.x, a.x)
               * corner(world.y, a.y) * corner(far.y, a.y)
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
    vec3 c = (base * light + paint.a * 1.5 * shine) * exposure + base * glow * glow_strength;
    // ACES, Narkowicz's fit
    c = clamp((c * (2.51 * c + 0.03)) / (c * (2.43 * c + 0.59) + 0.14), 0.0, 1.0);
    // a clear pane is the more opaque, the more it is seen from the side
    float facing = 1.0 - abs(dot(n, to_eye));
    float cover = tag.x == 65534u ? 0.08 + 0.5 * facing * facing * facing : 1.0;
    return vec4(pow(c, vec3(1.0 / 2.2)), cover);
}

void main() {
    vec3 flat_normal = normalize(cross(dFdx(view), dFdy(view)));
    if (dot(flat_normal, view) > 0.0) flat_normal = -flat_normal;
    picture = shaded(world_turn * flat_normal);
    ivec3 s = ivec3(round(clamp(flat_normal, -1.0, 1.0) * 127.0)) & 255;
    data = uvec4(floatBitsToUint(view.z), tag.y, uint(s.x | (s.y << 8) | (s.z << 16)), 0u);
}
"""

FULL_SCREEN = """
#version 330
void main() {
    gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}
"""

FINISH_SHADER = """
#version 330
uniform sampler2D picture; uniform float noise; uniform uint seed;
uniform float rows;  // height of one frame
out vec4 colour;

uint hash(uint x) {
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu;
    return x ^ (x >> 16);
}
vec2 px, low, high;
vec3 look(vec2 p) { return textureLod(picture, clamp(p, low, high) * px, 0.0).rgb; }
float luma(vec2 p) { return dot(look(p), vec3(0.299, 0.587, 0.114)); }

// FXAA (Lottes 2009), short form: steps of triangle edges become ramps
void main() {
    vec2 p = gl_FragCoord.xy;
    px = 1.0 / vec2(textureSize(picture, 0));
    low = vec2(0.5, floor(p.y / rows) * rows + 0.5);
    high = low + vec2(1.0 / px.x - 1.0, rows - 1.0);
    vec3 middle = look(p);
    float m = dot(middle, vec3(0.299, 0.587, 0.114));
    float nw = luma(p + vec2(-1, -1)), ne = luma(p + vec2(1, -1));
    float sw = luma(p + vec2(-1, 1)), se = luma(p + vec2(1, 1));
    float least = min(m, min(min(nw, ne), min(sw, se)));
    float most = max(m, max(max(nw, ne), max(sw, se)));
    vec2 along = vec2(sw + se - nw - ne, nw + sw - ne - se);
    along /= min(abs(along.x), abs(along.y)) + max((nw + ne + sw + se) * 0.03125, 0.0078);
    along = clamp(along, -6.0, 6.0);
    vec3 a = 0.5 * (look(p - along / 6.0) + look(p + along / 6.0));
    vec3 b = 0.5 * a + 0.25 * (look(p - along / 2.0) + look(p + along / 2.0));
    float l = dot(b, vec3(0.299, 0.587, 0.114));
    vec3 c = most - least < max(0.04, most * 0.1) ? middle : l < least || l > most ? a : b;
    uint h = hash(uint(p.x) + 4096u * uint(p.y) + seed * 0x9e3779b9u), h2 = hash(h + 1u);
    vec3 grain = vec3(h & 1023u, (h >> 10) & 1023u, (h >> 20) & 1023u)
               + vec3(h2 & 1023u, (h2 >> 10) & 1023u, (h2 >> 20) & 1023u);
    colour = vec4(c + noise * (grain / 1023.0 - 1.0), 1.0);
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
out vec2 moments;
void main() { moments = vec2(ahead, ahead * ahead); }
"""
