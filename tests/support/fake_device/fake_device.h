// What the parts of the fake accelerator share; README.md says what it is.
#pragma once

#include <cstddef>
#include <cstdint>

// Returns the host's view of a device address; a host address comes back as it is.
void *host_view(const void *pointer);

// Lets a collective or a memory function write to the interface that Paddle hands over.
struct C_DeviceInterface;
void add_collectives(C_DeviceInterface *interface);
#ifdef FAKE_HALF
void register_half_kernels(const char *device_type);
#endif

// IEEE half precision and bfloat16, as their bits.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);
