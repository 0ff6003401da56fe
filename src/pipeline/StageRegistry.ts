/** Where the runner finds stage types by what `uses` says. The runner imports no stage; src/stages/registry.ts provides this service. */
import { Context, type Effect, Schema } from "effect"
import type { AnyStageType } from "./StageType.ts"

/** A plugin that cannot be used as it is. `message` names the module and the cause. */
export class PluginInvalid extends Schema.TaggedError<PluginInvalid>()("PluginInvalid", {
  uses: Schema.String,
  message: Schema.String,
  next: Schema.String
}) {}

export class StageRegistry extends Context.Service<
  StageRegistry,
  {
    /** The program's own stage types. */
    readonly names: ReadonlyArray<string>
    /**
     * Loads the definition: a registered name, or a plugin's module (`./my-stage.ts`) or package, found from the pipeline file's folder.
     * undefined for a name that is neither registered nor an installed package.
     */
    readonly load: (uses: string, baseDirectory: string) => Effect.Effect<AnyStageType | undefined, PluginInvalid>
  }
>()("tinyllama/pipeline/StageRegistry") {}
