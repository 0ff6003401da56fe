/** Entry of a worker process on trial (`stage test`): `node src/trial-worker.ts <job.json>`. The imports wait until the compile cache is on. */
import * as module from "node:module"

module.enableCompileCache()
const [{ workerMain }, { onTrial }, { layer }] = await Promise.all([
  import("./pipeline/run/Worker.ts"),
  import("./pipeline/plugin/trial/TrialWorker.ts"),
  import("./stages/registry.ts")
])
workerMain(onTrial(layer, process.argv[2] ?? ""))
