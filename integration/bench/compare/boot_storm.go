package compare

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
	"cowblk/vhost/frontend"
)

// A boot storm starts many disks at once on one cached base. The clients sleep between completions
// as guests do: there are more of them than processors.
const (
	stormDisks = 20
	stormQD    = 8
	stormTime  = time.Second // from the start of the server
	stormRuns  = 3           // of each contender, in turn, each with new disks
)

// bootStorm counts the reads that all disks complete in the first second of their server.
func (s *site) bootStorm(ctx context.Context) error {
	counts, waits := map[string][]float64{}, map[string][]float64{}
	for run := range stormRuns {
		for _, c := range []struct {
			key  string
			make func(ctx context.Context, run int) (*exec.Cmd, []string, error)
		}{{report.StormCowblk, s.stormOfDisks}, {report.StormQcow2, s.stormOfOverlays}} {
			if s.results.Missing[c.key] != "" {
				continue
			}
			cmd, sockets, err := c.make(ctx, run)
			if err != nil {
				return err
			}
			n, wait, err := firstSecond(ctx, cmd, sockets, shuffled(s.size, uint64(run)))
			if err != nil {
				return err
			}
			counts[c.key] = append(counts[c.key], float64(n))
			waits[c.key] = append(waits[c.key], float64(wait.Milliseconds()))
		}
	}
	for _, c := range []struct{ key, what string }{
		{report.StormCowblk, "disks of one cowblk"},
		{report.StormQcow2, "qcow2 overlays of one qemu-storage-daemon"},
	} {
		if counts[c.key] != nil {
			s.results.AddSingle(c.key, fmt.Sprintf(
				"reads of 4 KiB in the first second of %d %s on one cached base; the last one served after %.0f ms; medians of %d",
				stormDisks, c.what, report.Median(waits[c.key]), stormRuns),
				report.Median(counts[c.key]), "")
		}
	}
	return nil
}

// stormOfDisks makes cowblk's disks of one run.
func (s *site) stormOfDisks(ctx context.Context, run int) (cmd *exec.Cmd, sockets []string,
	err error) {
	args := []string{"serve"}
	for i := range stormDisks {
		name := fmt.Sprintf("storm%d-%d", run, i)
		if err := s.clone(ctx, name, 1); err != nil {
			return nil, nil, err
		}
		args, sockets = append(args, name), append(sockets, s.diskSocket(name))
	}
	return s.store().Cmd(args...), sockets, nil
}

// stormOfOverlays makes the overlays of one run.
func (s *site) stormOfOverlays(ctx context.Context, run int) (cmd *exec.Cmd, sockets []string,
	err error) {
	var nodes []node
	for i := range stormDisks {
		path := s.path(fmt.Sprintf("storm%d-%d.qcow2", run, i))
		if err := s.createImage(ctx, path, s.base()); err != nil {
			return nil, nil, err
		}
		nodes = append(nodes, chainNode(s.base(), []string{path}))
		sockets = append(sockets, s.socket())
	}
	return s.exportAll(nodes, sockets, true), sockets, nil
}

// firstSecond starts a server and returns the number of reads that one client on each socket
// completes by the end of the time, and after how long the last client was connected. It kills the
// server: its disks are not used again. Each client has an order of its own and reads no block
// twice. Until one has read its share, no two have read the same block.
func firstSecond(ctx context.Context, cmd *exec.Cmd, sockets []string,
	blocks []int) (total int, wait time.Duration, err error) {
	orders := rotations(blocks, len(sockets))
	// Clients run beside each other, not one after the other.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(sockets) + 2))
	start := time.Now()
	p, err := harness.StartProcess(filepath.Base(cmd.Path)+" in a boot storm", cmd)
	if err != nil {
		return 0, 0, err
	}
	defer p.Kill()
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i, socket := range sockets {
		clients.Go(func() {
			n, connected, e := readFromStart(ctx, socket, orders[i], start.Add(stormTime))
			mu.Lock()
			defer mu.Unlock()
			total, wait = total+n, max(wait, connected.Sub(start))
			if e != nil {
				err = errors.Join(err, fmt.Errorf("client of %s: %w", socket, e))
			}
		})
	}
	clients.Wait()
	if err == nil && total == 0 {
		err = fmt.Errorf("%s completed no read in %s\n%s", p.Name, stormTime, p.Output())
	}
	return total, wait, err
}

// rotations returns n orders of the same blocks, each beginning where the share of the one before
// ends.
func rotations(blocks []int, n int) (orders [][]int) {
	for i := range n {
		at := len(blocks) / n * i
		orders = append(orders, slices.Concat(blocks[at:], blocks[:at]))
	}
	return orders
}

// readFromStart connects as soon as there is a server, and reads until the end. A disk that is not
// served by then has completed nothing.
func readFromStart(ctx context.Context, socket string, blocks []int, end time.Time) (n int,
	connected time.Time, err error) {
	for time.Now().Before(end) {
		f, err := connectBlocks(socket, stormQD, false)
		if err == nil {
			connected = time.Now()
			w := &sweep{op: frontend.OpRead, blocks: blocks, depth: stormQD, end: end}
			n, err := w.run(ctx, f.Driver(0))
			return n, connected, errors.Join(err, f.Close())
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return 0, end, err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, end, err
		}
	}
	return 0, end, nil
}
