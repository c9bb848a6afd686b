//go:build integration

package outage

import (
	"fmt"
	"testing"
)

// scatter writes to every disk: some flushed, some not, some blocks both.
func (m *machine) scatter(salt int64) {
	m.Helper()
	for _, d := range m.disks {
		for i := range int64(24) {
			m.must(d.write((salt*977+i*2311)%60000, 1+i%24))
		}
		m.must(d.flush())
		for i := range int64(24) {
			m.must(d.write((salt*977+i*2311+i%2*1300)%60000, 1+i%16))
		}
	}
}

// Killed alone, without any outage.
func TestKilled(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		m.kill()
		m.serve()
		m.verify(lived)
		fmt.Println("ok")
	})
}
