// float16 and bfloat16 as devices convert them: exactly to float, and from float to the nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

struct BFloat16 {
    uint16_t bits;
    BFloat16() = default;
    explicit BFloat16(float x) {
        const uint32_t wide = bits_of(x);
        bits = std::isnan(x) ? 0x7fc0 : static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
    }
    operator float() const { return float_of(static_cast<uint32_t>(bits) << 16); }
};

struct Half {
    uint16_t bits;
    Half() = default;
    explicit Half(float x) {
        const uint16_t sign = (bits_of(x) >> 16) & 0x8000;
        const float size = std::fabs(x);
        if (std::isnan(x)) {
            bits = 0x7e00;
        } else if (size >= 65520.0f) {  // halfway between the largest number and the next power of two
            bits = sign | 0x7c00;
        } else if (size < 0x1p-14f) {  // denormal: a multiple of 2**-24
            bits = sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
        } else {
            const uint32_t wide = bits_of(size) - (112u << 23);
            bits = sign | static_cast<uint16_t>((wide + 0xfff + ((wide >> 13) & 1)) >> 13);
        }
    }
    operator float() const {
        const float sign = bits & 0x8000 ? -1.0f : 1.0f;
        const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
        if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
        return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    }
};
