package daemon

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/backend"
	"cowblk/backend/backendtest"
	"cowblk/cow/store"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// serveEnv makes the test binary serve disks of a store: its directory and their names. It prints
// the paths of their sockets.
const serveEnv = "COWBLK_TEST_SERVE"

func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv(serveEnv)); len(words) > 0 {
		if err := serveMain(words[0], words[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveMain(dir string, names []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	st, err := store.Open(dir, store.Options{})
	if err != nil {
		return err
	}
	d, err := Open(ctx, Options{Store: st, Disks: names,
		Device: backend.DeviceOptions{Queues: backend.DefaultQueues}})
	if err != nil {
		return err
	}
	for _, e := range d.exports {
		fmt.Println(e.path)
	}
	_, end := d.Start(ctx)
	<-ctx.Done()
	return end()
}

// The estimate of checkOpenFiles is never below /proc/PID/fd, and not much above.
func TestDescriptorsNeeded(t *testing.T) {
	st := newStore(t, nil, "a", "b", "c")
	for i := range 5 {
		_, err := st.Promote(t.Context(), []string{"b"}, fmt.Sprint("t", i))
		test.Must(t, err)
	}
	image := filepath.Join(t.TempDir(), "image")
	test.Must(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
	_, err := st.Import(t.Context(), image, "i", store.ImportOptions{})
	test.Must(t, err)
	_, err = st.Create(t.Context(), "d", store.CreateOptions{From: "i"})
	test.Must(t, err)
	for _, tc := range []struct {
		names  []string
		layers int
		queues int
	}{
		{[]string{"a"}, 1, 1}, {[]string{"a"}, 1, 8}, {[]string{"b"}, 6, 1},
		{[]string{"a", "b", "c"}, 8, 1}, {[]string{"d"}, 1, 2}, {[]string{"a", "c"}, 2, 64},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), serveEnv+"="+st.Dir()+" "+strings.Join(tc.names, " "))
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		test.Must(t, err)
		test.Must(t, cmd.Start())
		defer cmd.Process.Kill()
		sockets := bufio.NewScanner(out)
		for range tc.names {
			if !sockets.Scan() {
				t.Fatal("the process has ended")
			}
			f, err := frontend.Dial(sockets.Text(), frontend.Options{Queues: tc.queues})
			test.Must(t, err)
			test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
			defer f.Abort()
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
		test.Must(t, err)
		open, need := len(fds), int(descriptorsNeeded(len(tc.names), tc.layers, tc.queues))
		t.Logf("%v, %d layers, %d queues: %d open, %d counted", tc.names, tc.layers, tc.queues,
			open, need)
		if unused := need - open - descriptorsReserve; unused < 0 || unused > 4+6*len(tc.names) {
			t.Errorf("%v with %d queues: %d are open, %d were counted with %d to spare", tc.names,
				tc.queues, open, need, descriptorsReserve)
		}
		test.Must(t, cmd.Process.Signal(syscall.SIGTERM))
		_, _ = io.Copy(io.Discard, out)
		test.Must(t, cmd.Wait())
	}
}
