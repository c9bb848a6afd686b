package daemon

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A file that is too large for the process has another reason than one too large for its file
// system, and the advice says which.
func TestFileSizeAdvice(t *testing.T) {
	var saved unix.Rlimit
	test.Must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &saved))
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_FSIZE, &saved) })
	cause := fmt.Errorf("truncate: %w", unix.EFBIG)
	for _, tt := range []struct {
		limit      uint64
		has, lacks string
	}{{saved.Max, "16 TiB on ext4", "ulimit -f"}, {1 << 50, "ulimit -f", "ext4"}} {
		test.Must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: tt.limit, Max: saved.Max}))
		if text := ExplainLimits(cause).Error(); !strings.Contains(text, tt.has) ||
			strings.Contains(text, tt.lacks) {
			t.Errorf("limit %d: %s", tt.limit, text)
		}
	}
}

// A read-only file system has advice, once.
func TestReadOnlyAdvice(t *testing.T) {
	bare := fmt.Errorf("store /s: %w", unix.EROFS)
	if text := ExplainLimits(bare).Error(); !strings.Contains(text, "--read-only") {
		t.Errorf("no advice: %s", text)
	}
	advised := fmt.Errorf("disk: %w\nthe store can be read", unix.EROFS)
	if text := ExplainLimits(advised).Error(); text != advised.Error() {
		t.Errorf("advised twice: %s", text)
	}
}
