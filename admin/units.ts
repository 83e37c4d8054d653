// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function formatBytes(bytes: number | undefined): string {
  if (bytes === undefined) return "";
  let [value, unit] = [bytes, 0];
  while (value >= 1_024 && unit < UNITS.length - 1) [value, unit] = [value / 1_024, unit + 1];
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function formatRate(bytes: number | undefined): string {
  return bytes === undefined ? "" : `${formatBytes(bytes)}/s`;
}

/** The two largest units: `3d4h`, `5m20s`, `12s`. */
export function formatDuration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1_000));
  const parts = [[Math.floor(seconds / 86_400), "d"], [Math.floor(seconds / 3_600) % 24, "h"], [Math.floor(seconds / 60) % 60, "m"], [
    seconds % 60,
    "s",
  ]] as const;
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0s";
  return parts.slice(first, first + 2).filter(([count]) => count > 0).map(([count, unit]) => `${count}${unit}`).join("");
}

/** Time since or until `time`, ISO 8601. */
export function formatSince(time: string | undefined, now: number): string {
  return time === undefined ? "" : formatDuration(now - Date.parse(time));
}

export function formatUntil(time: string | undefined, now: number): string {
  if (time === undefined) return "";
  const ms = Date.parse(time) - now;
  return ms <= 0 ? "expired" : formatDuration(ms);
}

export function formatMs(ms: number | undefined): string {
  return ms === undefined ? "" : `${ms >= 100 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

export function formatPercent(share: number | undefined): string {
  return share === undefined ? "" : `${(share * 100).toFixed(share > 0 && share < 0.1 ? 2 : 1)} %`;
}
