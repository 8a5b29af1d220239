// The CPU device's table of functions, and what an open device is (for the benchmark's probes).
#pragma once

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "program.h"
#include "tier.h"

namespace di {

struct OpenDevice {
    const Tier* tier;
    CpuDevice cpu;
};

const di_device_api* cpu_device_api();

}  // namespace di
