// Builds the native engine, and only the addon: test programs are built when tests run. Runs as npm's install hook in a checkout, where every
// machine has the compiler that the README asks for. The CUDA engine comes along where a driver and nvcc are; TINYLLAMA_CUDA=on builds it wherever
// nvcc is (a cluster's login node), off nowhere: docs/gpu.md. So does what joins ranks on CPUs, where CMake finds an MPI; TINYLLAMA_MPI=on fails
// where it finds none, off leaves it out: docs/distributed.md.
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { createRequire } from "node:module"
import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const cmakeJs = createRequire(import.meta.url).resolve("cmake-js/bin/cmake-js")
const wishFor = (variable) => {
  const wish = process.env[variable] || "auto"
  if (["auto", "on", "off"].includes(wish)) return wish
  console.error(`tinyllama: ${variable} is ${wish}; it must be auto, on or off`)
  process.exit(1)
}
const wish = wishFor("TINYLLAMA_CUDA")
const mpi = wishFor("TINYLLAMA_MPI")
const hasDriver = existsSync("/proc/driver/nvidia/version") || existsSync("/dev/nvidiactl")
const cuda = wish === "on" || (wish === "auto" && hasDriver)

const cmake = (command, ...more) =>
  spawnSync(
    process.execPath,
    [
      cmakeJs,
      command,
      "--out",
      "build",
      "--config",
      "Release",
      `--CDTINYLLAMA_CUDA=${cuda ? "ON" : "OFF"}`,
      `--CDTINYLLAMA_MPI=${mpi}`,
      "--parallel",
      String(availableParallelism()),
      ...more
    ],
    { cwd: root, stdio: "inherit" }
  ).status
const compile = (target) => cmake("compile", "--target", target)

// A build folder from before knows the wish of before: cmake-js passes options on only when it configures.
if (existsSync(`${root}build/CMakeCache.txt`)) cmake("configure")
const built = compile("tinyllama_native") === 0
if (built && cuda && compile("tinyllama_cuda") !== 0) {
  console.error(
    "tinyllama: the CUDA engine was not built; the CPU's was. See the messages above.\n" +
      "Next: put nvcc (CUDA 12.4 or newer) in the PATH or set CUDA_HOME, then: npm run build:native; or set TINYLLAMA_CUDA=off"
  )
  if (wish === "on") process.exit(1)
}
if (built && mpi !== "off" && compile("tinyllama_mpi") !== 0) {
  console.error(
    "tinyllama: the MPI communicator was not built; the engine was. See the messages above.\n" +
      "Next: check that mpicxx compiles a program, then: npm run build:native; or set TINYLLAMA_MPI=off"
  )
  if (mpi === "on") process.exit(1)
}
if (!built) {
  console.error(
    "tinyllama: the native engine was not built; see the compiler's messages above.\n" +
      "Next: install a C++20 compiler (g++ 11 or clang 14, or newer) and CMake 3.18 or newer, then: npm run build:native"
  )
  process.exit(1)
}
