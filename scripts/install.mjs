// Builds the native engine, and only the addon: test programs are built when tests run. Runs as npm's install hook in a checkout, where every
// machine has the compiler that the README asks for.
import { spawnSync } from "node:child_process"
import { createRequire } from "node:module"
import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const cmakeJs = createRequire(import.meta.url).resolve("cmake-js/bin/cmake-js")
const build = spawnSync(
  process.execPath,
  [
    cmakeJs,
    "compile",
    "--out",
    "build",
    "--config",
    "Release",
    "--target",
    "tinyllama_native",
    "--parallel",
    String(availableParallelism())
  ],
  { cwd: root, stdio: "inherit" }
)

if (build.status !== 0) {
  console.error(
    "tinyllama: the native engine was not built; see the compiler's messages above.\n" +
      "Next: install a C++20 compiler (g++ 11 or clang 14, or newer) and CMake 3.18 or newer, then: npm run build:native"
  )
  process.exit(1)
}
