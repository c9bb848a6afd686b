package cow

import (
	"context"
	"testing"

	"cowblk/internal/test"
)

// A context that ends just after the former head was sealed does not make it an error.
func TestSealedWhenTheContextEnds(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p := &Promotion{done: make(chan struct{}), sealEnded: make(chan struct{})}
	if err := p.Sealed(ended); err != context.Canceled {
		t.Errorf("before: %v", err)
	}
	close(p.done)
	test.Check(t, p.Sealed(ended), "after")
}
