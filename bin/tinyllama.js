#!/usr/bin/env node
// The shim: finds a Node that can run the program (TypeScript sources need 22.19 or newer), then starts it.
// In a checkout the sources run as they are; in a package, where Node strips no types, dist does.
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import * as module from "node:module"

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
const recentEnough = major > 22 || (major === 22 && minor >= 19)

if (recentEnough) {
  module.enableCompileCache?.()
  const source = new URL("../src/main.ts", import.meta.url)
  await import(existsSync(source) ? source.href : new URL("../dist/main.js", import.meta.url).href)
} else {
  const bundled = bundledNode()
  if (bundled === undefined) {
    console.error(
      `tinyllama needs Node 22.19 or newer; this is ${process.versions.node} (${process.platform} ${process.arch}), and the package brings ` +
        "its own Node for Linux x64 and arm64 only.\nNext: install a newer Node, or run npm ci again without --omit=optional."
    )
    process.exit(1)
  }
  const child = spawn(bundled, process.argv.slice(1), { stdio: "inherit" })
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal))
  child.on("exit", (code, signal) => (signal ? process.kill(process.pid, signal) : process.exit(code ?? 1)))
}

function bundledNode() {
  try {
    return module.createRequire(import.meta.url).resolve(`node-${process.platform}-${process.arch}/bin/node`)
  } catch {
    return undefined
  }
}
