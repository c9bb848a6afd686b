package load

import "math/bits"

// permutation is a pseudo-random order of the numbers below n without a table: a bijection on the
// numbers below the next power of two, applied repeatedly to results outside (a walk on a cycle of
// a bijection returns inside, and no two walks meet). It needs fewer than two steps on average.
type permutation struct {
	n, mask uint64
	shift   uint
	keys    [3]uint64
}

func newPermutation(n, seed uint64) permutation {
	width := uint(max(bits.Len64(max(n, 1)-1), 2))
	p := permutation{n: n, mask: 1<<width - 1, shift: width/2 + width%2}
	for i := range p.keys {
		p.keys[i] = splitMix(&seed)
	}
	return p
}

// at returns the i-th number of the order, i < n.
func (p *permutation) at(i uint64) uint64 {
	for {
		// Each step is invertible: adding, multiplying by an odd number modulo a power of two, and
		// folding the upper half into the lower one.
		for _, k := range p.keys {
			i = (i + k) & p.mask
			i ^= i >> p.shift
			i = i * (k | 1) & p.mask
			i ^= i >> p.shift
		}
		if i < p.n {
			return i
		}
	}
}

// random is a generator of 64 bits, xorshift64* (Vigna, 2014), which takes a nanosecond per number.
// The upper bits are the good ones.
type random uint64

// newRandom returns the stream-th generator of a seed.
func newRandom(seed, stream uint64) random {
	seed += stream * 0x9e3779b97f4a7c15
	return random(splitMix(&seed) | 1)
}

func (r *random) next() uint64 {
	x := uint64(*r)
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	*r = random(x)
	return x * 0x2545f4914f6cdd1d
}

// below returns a number below n (Lemire's multiplication, with a negligible bias of n in 2^64).
func (r *random) below(n uint64) uint64 {
	hi, _ := bits.Mul64(r.next(), n)
	return hi
}

// splitMix is the generator that seeds the others (Steele, Lea, Flood, 2014).
func splitMix(state *uint64) uint64 {
	*state += 0x9e3779b97f4a7c15
	z := *state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
