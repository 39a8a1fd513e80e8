// What the module says of itself and of the devices it meets.
#include "device.h"
#include "kernels.h"

namespace sparsekern {

#if defined(SPARSEKERN_EMULATED)

int runtime_version() { return 0; }
int driver_version() { return 0; }
std::string refusal(int) { return ""; }

#else

namespace {

__global__ void nothing() {}

}  // namespace

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;  // also where there is no driver: this is the one call that does not mind
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string refusal(int device) {
  const DeviceGuard guard({device, nullptr});
  cudaFuncAttributes attributes;
  const cudaError_t status =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing));
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // no later call is to report it
  return cudaGetErrorString(status);
}

#endif

}  // namespace sparsekern
