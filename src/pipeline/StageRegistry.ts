/** Where the runner finds stage types by name. The runner imports no stage; src/stages/registry.ts provides this service. */
import { Context, type Effect } from "effect"
import type { AnyStageType } from "./StageType.ts"

export class StageRegistry extends Context.Service<
  StageRegistry,
  {
    readonly names: ReadonlyArray<string>
    /** Loads the definition; undefined for a name that is not registered. */
    readonly load: (name: string) => Effect.Effect<AnyStageType | undefined>
  }
>()("tinyllama/pipeline/StageRegistry") {}
