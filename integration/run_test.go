//go:build integration

package integration

import (
	"io"
	"os"
	"testing"

	"cowblk/integration/harness"
	"cowblk/internal/test"
)

// "cowblk run" alone boots a guest and shows the guest's console on its own terminal.
func TestRunFromTheTerminal(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	cmd := suite.store.Cmd("run", e.disk("root", "--from", imageBIOS), "--accel",
		"tcg,thread=multi", "--memory", "512M",
		"--", "-cpu", "max")
	keyboard, typed, err := os.Pipe()
	e.must(err)
	t.Cleanup(func() { keyboard.Close(); typed.Close() })
	var screen harness.Transcript
	cmd.Stdin, cmd.Stdout, cmd.Stderr = keyboard, &screen, &screen
	p, err := harness.StartProcess("cowblk run", cmd)
	e.must(err)
	t.Cleanup(func() {
		_ = p.Signal(os.Interrupt) // otherwise its QEMU would survive
		_ = p.Wait(e.ctx)
		p.Kill()
	})
	for _, step := range []struct{ see, enter string }{
		{`root@golden:~# `, "echo $((6 * 7)) | tee /root/answer"},
		{`42`, "sync; systemctl poweroff"},
	} {
		test.Must(t, test.Err(screen.Expect(e.ctx, step.see)))
		_, err := io.WriteString(typed, step.enter+"\n")
		e.must(err)
	}
	if err := p.Wait(e.ctx); err != nil {
		t.Fatalf("%v\n%s", err, screen.Tail())
	}
}
