/** Durations and sizes as the pipeline file writes them, sizes and counts as people read them. */
import { Duration } from "effect"

const millisPer: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }
const bytesPer: Readonly<Record<string, number>> = {
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40
}

export const durationPattern = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/u
export const durationForm = 'a duration such as "30s", "10m" or "48h"'
/** "500ms", "30s", "10m", "1.5h", "2d". */
export const parseDuration = (text: string): Duration.Duration | undefined => {
  const match = durationPattern.exec(text.trim())
  const millis = Number(match?.[1]) * (millisPer[match?.[2] ?? ""] ?? Number.NaN)
  return Number.isFinite(millis) ? Duration.millis(millis) : undefined
}

export const bytesPattern = /^(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?$/u
export const bytesForm = 'a size such as "512MB" or "4GiB"'
/** "512MB", "4GiB"; a plain number counts bytes. */
export const parseBytes = (value: string | number): number | undefined => {
  const match = bytesPattern.exec(String(value).trim())
  const bytes = Number(match?.[1]) * (bytesPer[match?.[2] ?? "B"] ?? Number.NaN)
  return Number.isFinite(bytes) ? Math.round(bytes) : undefined
}

/** Decimal units, as disks and GGUF tables use them, three digits: 636726432 → "637 MB". */
export const formatBytes = (value: number): string => {
  const units = ["B", "kB", "MB", "GB", "TB"] as const
  let scaled = value
  let unit = 0
  while (scaled >= 999.5 && unit < units.length - 1) {
    scaled /= 1000
    unit += 1
  }
  return `${Number(scaled.toPrecision(3))} ${units[unit]}`
}

/** 1234567 → "1.23M"; below 10,000 as it is. */
export const formatCount = (value: number): string => {
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

/** Three significant digits without trailing noise: 5.2817 → "5.28", 0.00123 → "0.00123", 128.4 → "128". */
export const significant = (value: number): string => {
  if (value === 0 || !Number.isFinite(value)) return String(value)
  const digits = Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
  return digits.includes("e") ? digits : digits.replace(/(\.\d*?)0+$/u, "$1").replace(/\.$/u, "")
}
