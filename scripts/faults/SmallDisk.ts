/** A disk small enough to be filled: a tmpfs, for root where mounts are allowed. */
import { spawnSync } from "node:child_process"
import { mkdirSync, rmSync } from "node:fs"
import { temporary } from "../../test/fixtures/ranks/rank-runs.ts"

const mount = (folder: string, size: string): boolean =>
  spawnSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tinyllama-faults", folder]).status === 0
const unmount = (folder: string): void => void spawnSync("umount", ["--lazy", folder])
const remove = (folder: string): void => rmSync(folder, { recursive: true, force: true })

/** Whether there is one here. */
export const mounted = (() => {
  const folder = temporary()
  const works = mount(folder, "1m")
  if (works) unmount(folder)
  remove(folder)
  return works
})()

/** A folder for runs on a disk of 8 MiB; without mounts an ordinary one. `release` gives the disk back. */
export const smallDisk = (): { readonly runs: string; readonly release: () => void } => {
  const folder = temporary()
  const works = mounted && mount(folder, "8m")
  const runs = `${folder}/runs`
  mkdirSync(runs)
  const release = () => {
    if (works) unmount(folder)
    remove(folder)
  }
  return { runs, release }
}
