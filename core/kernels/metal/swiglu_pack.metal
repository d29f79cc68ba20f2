// The end of both SwiGLU bodies, which define GATE, UP and to. The CUDA source (cuda/swiglu_pack.cuh) says why it is
// written like this.
for (int i = 0; i < WIDTH; ++i) {
    const float gate_i = static_cast<float>(GATE);
    const float up_i = static_cast<float>(UP);
    const float decay = metal::precise::exp(-metal::abs(gate_i));
    const float sigmoid = (gate_i < 0.0f ? decay : 1.0f) / (1.0f + decay);
    out[to + i] = static_cast<T>(gate_i * sigmoid * up_i);
}
#undef GATE
#undef UP
