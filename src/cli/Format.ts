/** Numbers and tables as people read them. Pure functions; no colour, no terminal. */
export { formatBytes as bytes } from "../pipeline/file/Quantity.ts"

/** 1234567 → "1.23M"; below 10,000 as it is. */
export const count = (value: number): string => {
  if (Math.abs(value) < 10_000) return Number.isInteger(value) ? String(value) : significant(value)
  const units = ["k", "M", "B", "T"] as const
  let scaled = value
  let unit = ""
  for (const next of units) {
    if (Math.abs(scaled) < 1000) break
    scaled /= 1000
    unit = next
  }
  return `${significant(scaled)}${unit}`
}

/** Seconds → "0.4 s", "12 s", "3 m 05 s", "2 h 07 m". */
export const duration = (seconds: number): string => {
  if (!Number.isFinite(seconds) || seconds < 0) return "?"
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${pad(whole % 60)} s`
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} m`
}

/** Three significant digits without trailing noise: 5.2817 → "5.28", 0.00123 → "0.00123", 128.4 → "128". */
export const significant = (value: number): string => {
  if (value === 0 || !Number.isFinite(value)) return String(value)
  const digits = Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
  return digits.includes("e") ? digits : digits.replace(/(\.\d*?)0+$/u, "$1").replace(/\.$/u, "")
}

/** `width` cells of a bar filled to `share` (0 to 1). */
export const bar = (share: number, width: number): string => {
  const filled = Math.round(Math.min(1, Math.max(0, share)) * width)
  return "█".repeat(filled) + "░".repeat(width - filled)
}

/** Columns padded to their widest cell, two spaces apart; the header underlined. */
export const table = (header: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => (row[column] ?? "").length)))
  const line = (cells: ReadonlyArray<string>) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd()
  return [line(header), widths.map((width) => "─".repeat(width)).join("  "), ...rows.map(line)].join("\n")
}

const pad = (value: number): string => String(value).padStart(2, "0")
