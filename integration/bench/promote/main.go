package promote

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"
)

// scenario is one or several rows of the table.
type scenario struct {
	name  string
	size  string // of the disk
	depth int    // promotions before the measured ones
	dirty int64  // bytes written before each promotion and not flushed
	count int    // measured promotions
	qemu  bool   // qemu-storage-daemon instead of cowblk
}

type settings struct {
	cowblk, qsd, dir string
	qd               int
	span             int64
	only             string
	count            int
	bulk             int
}

// Main parses the command line and measures until ctx is done.
func Main(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("promote", flag.ExitOnError)
	var s settings
	fs.StringVar(&s.cowblk, "cowblk", "cowblk", "the cowblk `BINARY`")
	fs.StringVar(&s.qsd, "qemu-storage-daemon", "qemu-storage-daemon",
		"`BINARY` to compare with; omitted if it is missing")
	fs.StringVar(&s.dir, "dir", os.TempDir(),
		"`DIRECTORY` for disks, on the file system to measure")
	fs.IntVar(&s.count, "n", 1000, "promotions of the long rows")
	fs.IntVar(&s.bulk, "bulk", 20, "promotions of the rows with 1 GiB of dirty data")
	fs.IntVar(&s.qd, "depth", 16, "requests in flight")
	fs.Int64Var(&s.span, "span", 16<<20,
		"bytes in the middle of the disk that requests use; each layer has at most as much")
	fs.StringVar(&s.only, "only", "", "only the scenarios whose name contains `TEXT`")
	_ = fs.Parse(args) // exits on an error
	return run(&s)
}

func run(s *settings) error {
	// Garbage collections would show in the latencies.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(2 << 30)
	all := []scenario{
		{name: "cowblk, 10 GiB", size: "10G", count: s.count},
		{name: "cowblk, 1 TiB", size: "1T", count: s.count},
		{name: "cowblk, 10 GiB, 1 GiB dirty", size: "10G", count: s.bulk, dirty: 1 << 30},
		{name: "cowblk, 1 TiB, depth 100, 1 GiB dirty", size: "1T", count: s.bulk, dirty: 1 << 30,
			depth: 99},
		{name: "qemu qcow2, 10 GiB", size: "10G", count: s.bulk, qemu: true},
		{name: "qemu qcow2, 10 GiB, 1 GiB dirty", size: "10G", count: min(s.bulk, 10),
			dirty: 1 << 30, qemu: true},
	}
	fmt.Printf("random 4 KiB requests, half of them writes, %d in flight, in %d MiB; milliseconds\n\n", s.qd, s.span>>20)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, strings.Join(heading, "\t")+"\t")
	for _, sc := range all {
		if !strings.Contains(sc.name, s.only) || sc.count <= 0 {
			continue
		}
		if _, err := exec.LookPath(s.qsd); sc.qemu && err != nil {
			fmt.Fprintf(os.Stderr, "%s: left out: %v\n", sc.name, err)
			continue
		}
		start := time.Now()
		pairs, err := s.measure(&sc)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		for _, r := range rows(&sc, pairs) {
			fmt.Fprintln(w, strings.Join(r, "\t")+"\t")
		}
		fmt.Fprintf(os.Stderr, "%s: %d promotions in %s\n", sc.name, len(pairs),
			time.Since(start).Round(time.Second))
	}
	return w.Flush()
}
