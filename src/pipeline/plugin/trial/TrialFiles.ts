/** What an attempt left, compared byte by byte and fact by fact. */
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import { join, relative, sep } from "node:path"
import type { Facts } from "../../../artifacts/Artifact.ts"
import { canonicalJson } from "../../../artifacts/CanonicalJson.ts"

/** An output as it would be published. */
export interface Made {
  readonly port: string
  readonly files: ReadonlyMap<string, { readonly bytes: number; readonly sha256: string }>
  readonly facts: Facts
}

export const filesBelow = (folder: string): Made["files"] =>
  new Map(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
      .map((file) => {
        const bytes = readFileSync(file)
        const path = relative(folder, file).split(sep).join("/")
        return [path, { bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") }] as const
      })
  )

/** The first difference in words; undefined when both are equal. */
export const difference = (before: ReadonlyArray<Made>, after: ReadonlyArray<Made>): string | undefined => {
  for (const one of before) {
    const other = after.find(({ port }) => port === one.port)
    if (other === undefined) return `${one.port} is missing`
    for (const path of new Set([...one.files.keys(), ...other.files.keys()])) {
      const [a, b] = [one.files.get(path), other.files.get(path)]
      if (a === undefined) return `${one.port}: ${path} is there only the second time`
      if (b === undefined) return `${one.port}: ${path} is there only the first time`
      if (a.sha256 !== b.sha256) return `${one.port}: ${path} has other bytes (${a.bytes} and ${b.bytes} of them)`
    }
    for (const name of new Set([...Object.keys(one.facts), ...Object.keys(other.facts)])) {
      const [a, b] = [one.facts[name], other.facts[name]]
      const [was, is] = [a, b].map((value) => (value === undefined ? "absent" : canonicalJson(value)))
      if (was !== is) return `${one.port}: the fact ${name} is ${was}, then ${is}`
    }
  }
  return undefined
}
