package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// lockHolderEnv makes the test binary, as cowblk, delay calls on the files of its store. Its value
// is "GATE OP NAME": while the file GATE exists, a call OP (see faultfs.Call) on a file whose path
// contains NAME waits, after it has created the file GATE.caught.
const lockHolderEnv = "COWBLK_TEST_HOLD"

func lockHolderMain(spec string) int {
	gate, rest, _ := strings.Cut(spec, " ")
	op, name, _ := strings.Cut(rest, " ")
	x := faultfs.Over(vfs.OS{}, nil)
	x.OnCall(func(c faultfs.Call) error {
		if c.Op != op || !strings.Contains(c.Name, name) {
			return nil
		}
		for {
			if _, err := os.Stat(gate); err != nil {
				return nil
			}
			if f, err := os.Create(gate + ".caught"); err == nil {
				f.Close()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	a := newApp()
	a.files = x
	return run(os.Args[1:], a)
}

// A process that gets SIGTERM while a device does not answer stops its other disks, waits for the
// device, and answers on its control socket meanwhile; all acknowledged writes are kept. At a
// second signal it ends at once, and the next process finds all flushed data.
func TestStopWhileADiskDoesNotAnswer(t *testing.T) {
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("second signal=%v", second), func(t *testing.T) {
			t.Parallel()
			dir := storeWith(t, "1M", "a", "b")
			gate := filepath.Join(dir, "gate")
			m := manifestOf(t, dir, "a")
			// In the process only the delayed system call accesses the files of the gate.
			p := start(t, dir, func(c *exec.Cmd) {
				c.Env = append(c.Env, fmt.Sprintf("%s=%s write %s", lockHolderEnv, gate,
					m.Head().Data))
			}, "serve", "a", "b", "--sandbox", "off")
			a, b := dial(t, filepath.Join(dir, "run", "a.sock")),
				dial(t, filepath.Join(dir, "run", "b.sock"))
			ctl := dialRaw(t, filepath.Join(dir, "run", "a.ctl"))
			for _, f := range []*frontend.Frontend{a, b} {
				writeAt(t, f, 0, pattern(1, 4096))
				test.Must(t, f.Driver(0).Flush())
			}
			test.Must(t, os.WriteFile(gate, nil, 0o600))
			held := make(chan error, 1)
			go func() { _, err := a.Driver(0).WriteAt(pattern(2, 4096), 4096); held <- err }()
			test.Exists(t, gate+".caught")
			writeAt(t, b, 4096, pattern(3, 4096))
			test.Check(t, b.Driver(0).Flush())

			test.Must(t, p.cmd.Process.Signal(syscall.SIGTERM))
			test.Eventually(t, "the other disk is not served any more", func() bool {
				_, err := os.Lstat(filepath.Join(dir, "run", "b.sock"))
				return err != nil
			})
			for _, query := range []string{"query-cow-disks", "query-cow-stats"} {
				test.Check(t, ctl.run(query, nil), query, "while the process ends")
			}
			select {
			case err := <-held:
				t.Errorf("the write has ended: %v", err)
			default:
			}
			if second {
				ended := make(chan struct{})
				go func() { // those of the first second count as one
					for {
						select {
						case <-ended:
							return
						case <-time.After(100 * time.Millisecond):
							p.cmd.Process.Signal(syscall.SIGTERM)
						}
					}
				}()
				var exit *exec.ExitError
				err := p.cmd.Wait()
				close(ended)
				if !errors.As(err, &exit) ||
					exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
					t.Errorf("second signal: %v\n%s", err, p.log.String())
				}
			} else {
				test.Must(t, os.Remove(gate))
				test.Check(t, <-held, "the write")
				if err := p.cmd.Wait(); err != nil {
					t.Errorf("%v\n%s", err, p.log.String())
				}
			}
			q := start(t, dir, nil, "serve", "a", "b")
			a, b = dial(t, filepath.Join(dir, "run", "a.sock")),
				dial(t, filepath.Join(dir, "run", "b.sock"))
			wantAt(t, a, 0, pattern(1, 4096))
			if !second {
				wantAt(t, a, 4096, pattern(2, 4096))
			}
			wantAt(t, b, 0, append(pattern(1, 4096), pattern(3, 4096)...))
			q.end(t)
		})
	}
}
