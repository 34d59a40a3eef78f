// A row of the table of docs/phones.md.
export const LEAST = 60; // frames; the first ten are not counted

/** {device, browser}: what this browser tells of itself, and of its graphics processor if that was used. */
export async function device(usesGpu) {
  const { userAgentData: data, userAgent } = navigator;
  const told = await data?.getHighEntropyValues(["model", "platformVersion"]).catch(() => null);
  const gpu = usesGpu && (await navigator.gpu?.requestAdapter().catch(() => null))?.info;
  const machine = told ? `${told.model || told.platform} ${told.platformVersion}` : userAgent.match(/\(([^;)]+)/)?.[1] ?? "unknown";
  const brands = data?.brands.filter(({ brand }) => !/not.*brand/i.test(brand)); // browsers add one that is none
  const brand = brands?.find(({ brand }) => brand !== "Chromium") ?? brands?.[0];
  const named = userAgent.match(/(Firefox|FxiOS|CriOS|Edg|Chrome|Version)\/(\d+)/);
  return { device: [machine.trim(), gpu && [gpu.vendor, gpu.architecture].filter(Boolean).join(" ")].filter(Boolean).join(", "),
    browser: brand ? `${brand.brand} ${brand.version}` : named ? `${named[1].replace("Version", "Safari")} ${named[2]}` : "unknown" };
}

/** times: milliseconds of each frame; model: of page.json */
export function row({ device, browser, provider, model, times }) {
  const sorted = times.slice(10).sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)].toFixed(1);
  const cells = [device, browser, provider, model.label, at(0.5), at(0.95), model.sha256.slice(0, 12)];
  return `| ${cells.map((cell) => String(cell).replace(/[|\n]/g, " ")).join(" | ")} |`;
}
