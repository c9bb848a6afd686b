//go:build integration

package scale

import (
	"path/filepath"
	"testing"
	"time"

	"cowblk/integration/harness"
	"cowblk/internal/test"
)

// stepCalls returns the system calls of each step in a store that make has filled.
func stepCalls(t *testing.T, binary string, fill func(*client) error) map[string]float64 {
	t.Helper()
	c := &client{ctx: t.Context(), binary: binary, store: filepath.Join(t.TempDir(), "store")}
	test.Must(t, fill(c))
	time.Sleep(4 * time.Second) // the index takes a disk that has not changed for three seconds
	counts := map[string]float64{}
	for range 2 { // the first pass makes the checks that are done once
		for _, st := range c.steps() {
			n, err := c.calls(st.args...)
			test.Must(t, err)
			counts[st.name] = n
		}
	}
	return counts
}

// The binary's system calls do not follow the number of disks. A command that opens the stack makes
// a limited number for each layer, any other none.
func TestSystemCalls(t *testing.T) {
	binary, err := harness.Binary()
	test.Must(t, err)
	const few, many = 66, 106 // the index is read by io_uring for both
	small := stepCalls(t, binary, func(c *client) error { return c.disks(few) })
	large := stepCalls(t, binary, func(c *client) error { return c.disks(many) })
	for name, n := range small {
		t.Logf("%-20s %4.0f calls beside %d disks, %4.0f beside %d", name, n, few, large[name],
			many)
		if large[name] > n+(many-few)/4 {
			t.Errorf("%s: %.0f calls beside %d disks, %.0f beside %d", name, n, few, large[name],
				many)
		}
	}
	const shallow, deep = 2, 42
	perLayer := map[string]float64{"promote": 40, "promote again": 40, "check NAME": 40,
		"rollback": 60, "info NAME": 10, "completion": 2}
	small = stepCalls(t, binary, func(c *client) error { return c.tags(shallow) })
	large = stepCalls(t, binary, func(c *client) error { return c.tags(deep) })
	for name, n := range small {
		each := (large[name] - n) / (deep - shallow)
		t.Logf("%-20s %4.0f calls with %d tags, %4.0f with %d: %.1f for each", name, n, shallow,
			large[name], deep, each)
		if each > perLayer[name]+0.25 {
			t.Errorf("%s: %.1f calls for each tag, expected %.0f at most", name, each,
				perLayer[name])
		}
	}
}
