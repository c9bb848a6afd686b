package crash

import (
	"os"
	"runtime/debug"
	"testing"
)

// A cut makes much garbage and keeps nothing.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}
