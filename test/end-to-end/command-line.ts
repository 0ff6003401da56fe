/** Runs the real command line as a user does: a process of its own, its output and its exit code. */
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { cpSync, mkdtempSync, readFileSync, readdirSync, realpathSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

export const root = fileURLToPath(new URL("../..", import.meta.url))
export const smallPipeline = join(root, "test/fixtures/small/pipeline.yaml")

export interface Outcome {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface Started {
  readonly signal: (signal: NodeJS.Signals) => void
  /** Resolves when a line of the output so far matches. */
  readonly seen: (pattern: RegExp) => Promise<void>
  readonly outcome: Promise<Outcome>
}

export const start = (
  args: ReadonlyArray<string>,
  options: { readonly input?: string; readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {}
): Started => {
  const child = spawn(process.execPath, [join(root, "bin/tinyllama.js"), ...args], {
    cwd: options.cwd ?? root,
    env: { ...process.env, ...options.env },
    stdio: ["pipe", "pipe", "pipe"]
  })
  let stdout = ""
  let stderr = ""
  const watchers = new Set<() => void>()
  const notify = () => watchers.forEach((watch) => watch())
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString()
    notify()
  })
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString()
    notify()
  })
  child.stdin.end(options.input ?? "")
  const outcome = new Promise<Outcome>((resolve) => {
    child.on("close", (code) => {
      resolve({ code, stdout, stderr })
      notify()
    })
  })
  const seen = (pattern: RegExp) =>
    new Promise<void>((resolve, reject) => {
      const watch = () => {
        if (pattern.test(stdout) || pattern.test(stderr)) {
          watchers.delete(watch)
          resolve()
        } else if (child.exitCode !== null) {
          reject(new Error(`ended with ${child.exitCode} before ${String(pattern)}:\n${stdout}\n${stderr}`))
        }
      }
      watchers.add(watch)
      watch()
    })
  return { signal: (signal) => void child.kill(signal), seen, outcome }
}

export const tinyllama = (args: ReadonlyArray<string>, options: Parameters<typeof start>[1] = {}): Promise<Outcome> =>
  start(args, options).outcome

export const temporaryFolder = (): string => mkdtempSync(join(tmpdir(), "tinyllama-test-"))

/** A folder with the given files and copies of the small pipeline's data files. */
export const folderWith = (files: Readonly<Record<string, string | Uint8Array>>): string => {
  const folder = temporaryFolder()
  for (const name of ["conversations.jsonl", "questions.jsonl"])
    cpSync(join(root, "test/fixtures/small", name), join(folder, name))
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content)
  return folder
}

/** sha256 by path of every file in the outputs of the latest run, with symbolic links followed. */
export const outputDigests = (runs: string): Readonly<Record<string, string>> => {
  const stages = join(realpathSync(join(runs, "latest")), "stages")
  return Object.fromEntries(
    filesBelow(stages)
      .filter((path) => path.includes("/out/"))
      .map((path) => [path.slice(stages.length), createHash("sha256").update(readFileSync(path)).digest("hex")])
  )
}

const filesBelow = (folder: string): ReadonlyArray<string> =>
  readdirSync(folder)
    .sort()
    .flatMap((name) => {
      const path = join(folder, name)
      return statSync(path).isDirectory() ? filesBelow(path) : [path]
    })
