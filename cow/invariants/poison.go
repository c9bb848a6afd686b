package invariants

// poison is a byte that neither tests nor file systems write.
const poison = 0xDB

// Poison overwrites memory that is released, so that a later use shows. It does nothing unless
// Enabled.
func Poison(p []byte) {
	if !Enabled {
		return
	}
	for i := range p {
		p[i] = poison
	}
}
