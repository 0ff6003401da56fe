/** Entry of a worker process: `node src/worker.ts <job.json>`. The imports wait until the compile cache is on. */
import * as module from "node:module"

module.enableCompileCache()
const [{ workerMain }, { layer }] = await Promise.all([
  import("./pipeline/run/Worker.ts"),
  import("./stages/registry.ts")
])
workerMain(layer)
