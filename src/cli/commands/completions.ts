/** `tinyllama completions SHELL`: a script that makes the shell complete commands and flags; in bash, names of stages and profiles too. */
import { Console, Context, Effect } from "effect"
import { Argument, Command, Completions } from "effect/cli"

const shells = ["bash", "zsh", "fish"] as const

/** The whole program, for the commands that describe it. */
export class CommandTree extends Context.Service<CommandTree, Command.Command.Any>()("tinyllama/cli/CommandTree") {}

export const completionsCommand = Command.make(
  "completions",
  { shell: Argument.Literals("shell", shells).pipe(Argument.withDescription("bash, zsh or fish")) },
  Effect.fn(function* (flags) {
    const descriptor = Completions.fromCommand(yield* CommandTree)
    const script = Completions.generate("tinyllama", flags.shell, descriptor)
    yield* Console.log(flags.shell === "bash" ? `${script}\n${namesInBash}` : script)
  })
).pipe(Command.withDescription("Print a script that makes the shell complete commands, flags and names"))

/**
 * Stages after --from-stage and its like, profiles after -p: the keys below `stages` and `profiles` in the file on the line, else pipeline.yaml. By
 * awk, for a start of the program at each TAB would be felt; so the file must have the form that `tinyllama fmt` gives it.
 */
const namesInBash = String.raw`
_tinyllama_names()
{
  local block="$1" file=pipeline.yaml word
  for word in "${"$"}{COMP_WORDS[@]}"; do
    [[ "$word" == *.y?(a)ml && -r "$word" ]] && file="$word"
  done
  [[ -r "$file" ]] || return
  awk -v block="$block" '
    /^[^ #]/ { inside = index($0, block ":") == 1; indent = 0; next }
    inside && match($0, /^ +[A-Za-z]/) {
      if (!indent) indent = RLENGTH
      if (RLENGTH == indent) { sub(/^ +/, ""); sub(/:.*/, ""); print }
    }' "$file"
}

_tinyllama_with_names()
{
  local word="${"$"}{COMP_WORDS[COMP_CWORD]}" before="${"$"}{COMP_WORDS[COMP_CWORD-1]}" block=
  if [[ "$word" == "=" ]]; then
    word=
  elif [[ "$before" == "=" ]]; then
    before="${"$"}{COMP_WORDS[COMP_CWORD-2]}"
  fi
  case "$before" in
    --from-stage|--to-stage|--only|--force) block=stages ;;
    --profile|-p) block=profiles ;;
    *) _tinyllama "$@"; return ;;
  esac
  COMPREPLY=( $(compgen -W "$(_tinyllama_names "$block")" -- "$word") )
}

complete -F _tinyllama_with_names tinyllama`
