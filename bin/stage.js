// "tinyllama/stage" for whoever imports it outside of a run (a plugin's own tests): the sources in a checkout, dist in a package.
// Within a run the program hands its own module to plugins, so that there is one StageError and not two.
import { existsSync } from "node:fs"

const source = new URL("../src/stage.ts", import.meta.url)
const stage = await import(existsSync(source) ? source.href : new URL("../dist/stage.js", import.meta.url).href)

export const { countIn, defineStage, parameter, Preempted, StageError, writeFileAtomic, writeJsonAtomic } = stage
