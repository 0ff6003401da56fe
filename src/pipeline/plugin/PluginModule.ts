/**
 * Finds, fingerprints and imports the module of a plugin stage. A plugin may lie anywhere, also where nothing is installed: Node's module hooks
 * give it this program's own `tinyllama/stage` and `effect`, so that its errors and schemas are the runner's. The fingerprint covers the module,
 * its relative imports, and name@version of the packages that they import.
 */
import { createHash } from "node:crypto"
import { readFileSync, statSync } from "node:fs"
import * as module from "node:module"
import { dirname, extname, relative, resolve, sep } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"

const extension = extname(import.meta.filename)
/** What plugins import as "tinyllama/stage": src/stage.ts in a checkout, dist/stage.js in a package. */
const stageModule = new URL(`../../stage${extension}`, import.meta.url).href

/** Folders (as URLs that end with a slash) whose modules get this program's effect. */
const pluginFolders = new Set<string>()
const isPlugin = (url: string | undefined): url is string =>
  url !== undefined &&
  Array.from(pluginFolders).some(
    (folder) => url.startsWith(folder) && !url.slice(folder.length).includes("node_modules/")
  )

const packageQuery = "tinyllama-plugin:"
/** Added to the address of a module whose code changed since this process imported it, and to its relative imports. */
const codeQuery = "?code="

let hooked = false
const installHooks = (): void => {
  if (hooked) return
  hooked = true
  module.registerHooks({
    resolve: (specifier, context, next) => {
      if (specifier === "tinyllama/stage") return { url: stageModule, shortCircuit: true }
      if (specifier.startsWith(packageQuery)) {
        const { searchParams } = new URL(specifier)
        const parentURL = searchParams.get("from") ?? undefined
        return next(searchParams.get("name") ?? "", { ...context, parentURL, conditions: ["node", "import"] })
      }
      const within = isPlugin(context.parentURL)
      if (within && /^effect($|\/)/u.test(specifier)) return next(specifier, { ...context, parentURL: import.meta.url })
      const found = next(specifier, context)
      if (!isPlugin(found.url)) return found
      const code = within ? context.parentURL?.split(codeQuery)[1] : undefined
      const url = code === undefined || found.url.includes(codeQuery) ? found.url : found.url + codeQuery + code
      return { ...found, url, format: found.format ?? formatOf(found.url) }
    }
  })
}
/** Plugins are ES modules, whatever the nearest package.json leaves unsaid. */
const formatOf = (url: string): string | undefined => {
  const { pathname } = new URL(url)
  return pathname.endsWith(".ts") ? "module-typescript" : pathname.endsWith(".js") ? "module" : undefined
}

export interface PluginReference {
  /** A file when it starts with ./, ../ or /, else a package. */
  readonly module: string
  /** Name of the export; undefined for the default one. */
  readonly exported: string | undefined
}

export const parseReference = (uses: string): PluginReference => {
  const at = uses.lastIndexOf("#")
  return at < 0 ? { module: uses, exported: undefined } : { module: uses.slice(0, at), exported: uses.slice(at + 1) }
}

export const isFileReference = (reference: string): boolean => /^(\.{1,2}\/|\/)/u.test(reference)
/** npm's names, with a subpath perhaps. */
export const isPackageReference = (reference: string): boolean =>
  /^(@[a-z0-9][\w.-]*\/)?[a-z0-9][\w.-]*(\/[\w.-]+)*$/iu.test(reference)

/** The module's file; undefined where the package is not installed. Throws what Node says of a package that cannot be entered. */
export const locate = (reference: string, baseDirectory: string): string | undefined => {
  installHooks()
  if (isFileReference(reference)) return resolve(baseDirectory, reference)
  const from = pathToFileURL(`${baseDirectory}/`).href
  const query = `${packageQuery}?${new URLSearchParams({ name: reference, from }).toString()}`
  try {
    return fileURLToPath(import.meta.resolve(query))
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ERR_MODULE_NOT_FOUND") return undefined
    throw error
  }
}

export interface Code {
  readonly digest: string
  /** Every file that counts, with what tells that it is as it was. */
  readonly files: ReadonlyMap<string, string>
}

/** Specifiers in import and export declarations and in import(): also those in comments, for one file too many does no harm. */
const imports = /(?:\bfrom|\bimport)\s*\(?\s*["']([^"'\n]+)["']/gu

/** Digest over the module's import graph; paths count relative to the module, so that a moved folder keeps its digest. */
export const fingerprint = (file: string): Code => {
  const files = new Map<string, string>()
  const parts = new Map<string, string>()
  const root = dirname(file)
  const visit = (path: string): void => {
    const stamp = stampOf(path)
    if (stamp === undefined || files.has(path)) return
    files.set(path, stamp)
    const bytes = readFileSync(path)
    parts.set(relative(root, path).split(sep).join("/"), createHash("sha256").update(bytes).digest("hex"))
    if (!/\.[cm]?[jt]s$/u.test(path)) return
    for (const [, specifier = ""] of bytes.toString().matchAll(imports)) {
      if (isFileReference(specifier)) visit(resolve(dirname(path), specifier))
      else if (!/^(node:|effect($|\/)|tinyllama($|\/))/u.test(specifier)) visitPackage(specifier, path)
    }
  }
  const visitPackage = (specifier: string, from: string): void => {
    const manifest = packageManifest(specifier, from)
    if (manifest !== undefined) parts.set(`package ${manifest.name}`, manifest.version)
  }
  visit(file)
  const sorted = Array.from(parts).sort(([a], [b]) => (a < b ? -1 : 1))
  return { digest: createHash("sha256").update(JSON.stringify(sorted)).digest("hex"), files }
}

/** True while no file of the graph has another size, time or inode. */
export const isCurrent = (code: Code): boolean =>
  Array.from(code.files).every(([path, stamp]) => stampOf(path) === stamp)

const stampOf = (path: string): string | undefined => {
  const info = statSync(path, { bigint: true, throwIfNoEntry: false })
  return info?.isFile() === true ? `${info.size} ${info.mtimeNs} ${info.ino}` : undefined
}

const packageManifest = (specifier: string, from: string): { name: string; version: string } | undefined => {
  try {
    const file = module.findPackageJSON(specifier, pathToFileURL(from))
    if (file === undefined) return undefined
    const manifest: unknown = JSON.parse(readFileSync(file, "utf8"))
    if (typeof manifest !== "object" || manifest === null) return undefined
    const name = "name" in manifest && typeof manifest.name === "string" ? manifest.name : specifier
    return { name, version: "version" in manifest && typeof manifest.version === "string" ? manifest.version : "" }
  } catch {
    return undefined // not installed, or a Node built-in without its prefix: the import itself will tell
  }
}

const imported = new Set<string>()

/** Imports the module; a second time with other code imports it anew. */
export const importModule = async (file: string, code: Code): Promise<Readonly<Record<string, unknown>>> => {
  installHooks()
  pluginFolders.add(`${pathToFileURL(dirname(file)).href}/`)
  const url = pathToFileURL(file).href
  const first = !imported.has(url)
  imported.add(url)
  return (await import(/* @vite-ignore */ first ? url : url + codeQuery + code.digest.slice(0, 16))) as Readonly<
    Record<string, unknown>
  >
}

/** "my-stage.ts:3:7" of an error that a module threw while loading, as far as its stack tells. */
export const placeOf = (error: Error, file: string): string | undefined => {
  const lines = (error.stack ?? "").split("\n")
  for (const line of lines) {
    const match = /(file:\/\/[^\s)?]+)(?:\?[^\s):]*)?:(\d+)(?::(\d+))?/u.exec(line)
    if (match === null) continue
    const [, url = "", row = "", column] = match
    const path = fileURLToPath(url)
    if (path !== file && !isPlugin(url)) continue
    return `${relative(dirname(file), path)}:${row}${column === undefined ? "" : `:${column}`}`
  }
  return undefined
}
