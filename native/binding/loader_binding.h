// The Loader class: batches of packed datasets.
#pragma once
#include <napi.h>

namespace tinyllama {

Napi::Function define_loader(Napi::Env env);

}  // namespace tinyllama
