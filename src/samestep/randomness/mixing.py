"""Integers to well-mixed bits: what every order and every generator is keyed with."""

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers into 64 well-mixed bits (the finaliser of SplitMix64: Steele, Lea and Flood, 2014, figure 15)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
