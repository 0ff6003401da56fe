/** Numbers and tables as people read them. Pure functions; no colour, no terminal. */
export { formatBytes as bytes, formatCount as count, significant } from "../pipeline/file/Quantity.ts"

/** From here on days say more than hours and minutes. */
const MANY_HOURS = 100
const MANY_DAYS = 1000

/** Seconds → "0.4 s", "12 s", "3 m 05 s", "2 h 07 m", "2,170 h (90 d)". */
export const duration = (seconds: number): string => {
  if (!Number.isFinite(seconds) || seconds < 0) return "?"
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${pad(whole % 60)} s`
  if (whole >= MANY_HOURS * 3600) {
    const days = whole / 86_400
    const longer = days < MANY_DAYS ? `${Math.round(days)} d` : `${grouped(days / 365.25)} years`
    return `${grouped(whole / 3600)} h (${longer})`
  }
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} m`
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

const grouped = (value: number): string => Math.round(value).toLocaleString("en-US")

const pad = (value: number): string => String(value).padStart(2, "0")
