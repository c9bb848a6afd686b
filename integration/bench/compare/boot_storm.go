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
	stormRuns  = 3           // of each contender, in turn; the median counts
)

// bootStorm counts the reads that all disks complete in the first second of their server.
func (s *site) bootStorm(ctx context.Context) error {
	var disks, overlays []string
	for i := range stormDisks {
		disks = append(disks, fmt.Sprintf("b%d", i))
		overlays = append(overlays, s.path(fmt.Sprintf("b%d.qcow2", i)))
		if err := s.clone(ctx, disks[i], 1); err != nil {
			return err
		}
	}
	var sockets []string
	for _, d := range disks {
		sockets = append(sockets, s.diskSocket(d))
	}
	withQEMU := s.results.Missing[report.StormQcow2] == ""
	for i := 0; withQEMU && i < stormDisks; i++ {
		if err := s.createImage(ctx, overlays[i], s.base()); err != nil {
			return err
		}
	}
	var ours, theirs []float64
	for run := range stormRuns {
		blocks := shuffled(s.size, uint64(run))
		n, err := s.firstSecond(ctx, s.store().Cmd(append([]string{"serve"}, disks...)...),
			sockets, blocks)
		if err != nil {
			return err
		}
		ours = append(ours, float64(n))
		if !withQEMU {
			continue
		}
		var nodes []node
		var own []string
		for _, o := range overlays {
			nodes = append(nodes, chainNode(s.base(), []string{o}))
			own = append(own, s.socket())
		}
		if n, err = s.firstSecond(ctx, s.exportAll(nodes, own, true), own, blocks); err != nil {
			return err
		}
		theirs = append(theirs, float64(n))
	}
	what := fmt.Sprintf("reads of 4 KiB in the first %s of %d %%s on one cached base", stormTime,
		stormDisks)
	s.results.AddSingle(report.StormCowblk, fmt.Sprintf(what, "disks of one cowblk"),
		report.Median(ours), "")
	if withQEMU {
		s.results.AddSingle(report.StormQcow2, fmt.Sprintf(what,
			"qcow2 overlays of one qemu-storage-daemon"), report.Median(theirs), "")
	}
	return nil
}

// firstSecond starts a server and returns the number of reads that one client on each socket
// completes by the end of the time. Each client has an order of its own and reads no block twice.
// Until one has read its share, no two have read the same block.
func (s *site) firstSecond(ctx context.Context, cmd *exec.Cmd, sockets []string,
	blocks []int) (total int, err error) {
	orders := rotations(blocks, len(sockets))
	// Clients run beside each other, not one after the other.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(sockets) + 2))
	end := time.Now().Add(stormTime)
	p, err := harness.StartProcess(filepath.Base(cmd.Path)+" in a boot storm", cmd)
	if err != nil {
		return 0, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if e := p.Stop(ending); e != nil {
			p.Kill()
			err = errors.Join(err, e)
		}
	}()
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i, socket := range sockets {
		clients.Go(func() {
			n, e := readFromStart(ctx, socket, orders[i], end)
			mu.Lock()
			defer mu.Unlock()
			total += n
			if e != nil {
				err = errors.Join(err, fmt.Errorf("client of %s: %w", socket, e))
			}
		})
	}
	clients.Wait()
	if err == nil && total == 0 {
		err = fmt.Errorf("%s completed no read in %s\n%s", p.Name, stormTime, p.Output())
	}
	return total, err
}

// rotations returns n orders of the same blocks, each beginning where the share of the one before ends.
func rotations(blocks []int, n int) (orders [][]int) {
	for i := range n {
		at := len(blocks) / n * i
		orders = append(orders, slices.Concat(blocks[at:], blocks[:at]))
	}
	return orders
}

// readFromStart connects as soon as there is a server, and reads until the end. A disk that is not
// served by then has completed nothing.
func readFromStart(ctx context.Context, socket string, blocks []int, end time.Time) (int, error) {
	for time.Now().Before(end) {
		f, err := connectBlocks(socket, stormQD, false)
		if err == nil {
			w := &sweep{op: frontend.OpRead, blocks: blocks, depth: stormQD, end: end}
			n, err := w.run(ctx, f.Driver(0))
			return n, errors.Join(err, f.Close())
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return 0, err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, nil
}
