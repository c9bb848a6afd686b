package main

import (
	"bytes"
	"strings"
	"testing"
)

// The note names the QEMU versions that need --reconnect-ms; the output for scripts does not
// change.
func TestQEMUArgsNameTheQEMU(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	for _, tt := range []struct {
		args     []string
		terminal bool
		note     bool
		spelling string
	}{
		{nil, true, true, "reconnect=1 "}, {nil, false, false, "reconnect=1 "},
		{[]string{"--reconnect-ms"}, true, false, "reconnect-ms=1000 "},
		{[]string{"--reconnect-ms"}, false, false, "reconnect-ms=1000 "},
	} {
		var out, errOut bytes.Buffer
		a := s.app(&out, &errOut)
		a.terminal = func(any) bool { return tt.terminal }
		if code := run(append([]string{"qemu-args", "vm1"}, tt.args...), a); code != exitOK ||
			!strings.Contains(out.String(), tt.spelling) || strings.Contains(out.String(), "note") {
			t.Errorf("%v: exit %d: %s", tt.args, code, &out)
		}
		if strings.Contains(errOut.String(), "--reconnect-ms") != tt.note {
			t.Errorf("%v, terminal %t: %s", tt.args, tt.terminal, &errOut)
		}
	}
	if help := s.command("cowblk qemu-args --help"); !strings.Contains(help,
		"QEMU 10.1 and later refuse") {
		t.Error(help)
	}
}
