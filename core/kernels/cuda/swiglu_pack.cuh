// The end of both SwiGLU bodies, which name gates_at, ups_at and to: WIDTH neighbours a thread, in float32, where
// exp(-|gate|) neither overflows nor meets an infinity that a fast math mode would be allowed to ignore. Inputs may start
// anywhere in a larger buffer, so that wide loads need a look at the address; the branch is the same for all threads.
struct alignas(sizeof(T) * WIDTH) Pack { T values[WIDTH]; };
Pack gates, ups, results;
const bool aligned = (reinterpret_cast<size_t>(gates_at) | reinterpret_cast<size_t>(ups_at)) % sizeof(Pack) == 0;
if (aligned) {
    gates = *reinterpret_cast<const Pack*>(gates_at);
    ups = *reinterpret_cast<const Pack*>(ups_at);
} else {
    for (int i = 0; i < WIDTH; ++i) {
        gates.values[i] = gates_at[i];
        ups.values[i] = ups_at[i];
    }
}
for (int i = 0; i < WIDTH; ++i) {
    const float gate_i = static_cast<float>(gates.values[i]);
    const float up_i = static_cast<float>(ups.values[i]);
    const float decay = expf(-fabsf(gate_i));
    const float sigmoid = (gate_i < 0.0f ? decay : 1.0f) / (1.0f + decay);
    results.values[i] = static_cast<T>(gate_i * sigmoid * up_i);
}
*reinterpret_cast<Pack*>(out + to) = results;  // an output starts its own buffer, and is aligned
