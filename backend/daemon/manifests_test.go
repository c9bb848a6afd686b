package daemon

import (
	"testing"

	"cowblk/backend/qmp"
)

// If a quiesce record cannot be written for every disk, none remains. Nothing is quiesced then, and
// a later process must not thaw a guest that somebody else has paused.
func TestQuiesceRecordForAllOrNone(t *testing.T) {
	s := newStore(t, nil, "a")
	n := &manifests{store: s}
	if err := n.SetQuiesceRecord([]string{"a", "gone"},
		&qmp.Spec{Mode: qmp.QuiescePause}); err == nil {
		t.Fatal("a record was made for a disk that does not exist")
	}
	if left, err := s.QuiesceRecord("a", &qmp.Spec{}); err != nil || left {
		t.Errorf("a record is left: %v, %v", left, err)
	}
}
