//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cowblk/integration/harness"
)

// countPromotions is how often each way of quiescing is used: usual times, or as
// often as COWBLK_PROMOTIONS says, for which the test gets more time.
func (e *env) countPromotions(usual int) int {
	e.Helper()
	s := os.Getenv("COWBLK_PROMOTIONS")
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		e.Fatalf("COWBLK_PROMOTIONS=%s: expected a number of promotions", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit+time.Duration(n)*45*time.Second)
	e.ctx, e.stop = context.WithCancelCause(ctx)
	e.Cleanup(cancel)
	return n
}

// way is how a test has the guest quiesced.
type way struct {
	mode    string
	options []string // of "cowblk promote"
}

// promoteAll promotes n times in each way while the workload runs, and logs what
// that took. After each promotion it calls after, unless that is nil.
func (e *env) promoteAll(r *rig, n int, ways []way, after func(mode string)) []tagged {
	e.Helper()
	var tags []tagged
	for i := range n {
		for _, w := range ways {
			tags = append(tags, e.promote(r, fmt.Sprintf("%s-%02d", w.mode, i+1), w))
			if after != nil {
				after(w.mode)
			}
		}
	}
	e.report(tags)
	return tags
}

// tagged is one promotion that a test has made.
type tagged struct {
	name, mode   string
	acknowledged int           // last transaction committed when the command was started
	took         time.Duration // the command, from start to end
	swap         float64       // microseconds
	held         float64       // milliseconds
}

// promote promotes the workload's disks, which are served, and remembers it.
func (e *env) promote(r *rig, name string, w way) tagged {
	e.Helper()
	t := tagged{name: name, mode: w.mode, acknowledged: e.acknowledged(r.Machine)}
	var p struct {
		Disks []struct {
			Disk  string `json:"disk"`
			Depth int    `json:"depth"`
		} `json:"disks"`
		Tag     string  `json:"tag"`
		Quiesce string  `json:"quiesce"`
		Swap    float64 `json:"swap-microseconds"`
		Held    float64 `json:"held-milliseconds"`
	}
	args := append([]string{"promote", r.data, r.mark, "--tag", name, "--quiesce", w.mode}, w.options...)
	start := time.Now()
	text, err := r.cowblk(append([]string{"--json"}, args...)...)
	e.must(err)
	e.must(json.Unmarshal([]byte(text), &p))
	t.took, t.swap, t.held = time.Since(start), p.Swap, p.Held
	if p.Tag != name || p.Quiesce != w.mode || len(p.Disks) != 2 || (p.Held > 0) != (w.mode != "none") {
		e.Errorf("cowblk %s answered %+v", strings.Join(args, " "), p)
	}
	return t
}

// spread describes numbers.
func spread(values []float64) string {
	if len(values) == 0 {
		return "none"
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(q*float64(len(values)-1)+0.5)] }
	return fmt.Sprintf("median %.1f, 90 %% %.1f, longest %.1f", at(0.5), at(0.9), at(1))
}

// report logs what promotions took.
func (e *env) report(tags []tagged) {
	e.Helper()
	for _, mode := range []string{"none", "guest", "pause"} {
		var took, swap, held []float64
		for _, t := range tags {
			if t.mode == mode {
				took, swap, held = append(took, t.took.Seconds()*1e3), append(swap, t.swap), append(held, t.held)
			}
		}
		if len(took) > 0 {
			e.Logf("quiesce %s, %d promotions: command %s ms; swap %s µs; guest held %s ms", mode, len(took), spread(took), spread(swap), spread(held))
		}
	}
}

// export offers tags over NBD from a process of its own, as long as the test
// lasts, and returns the URI of one.
func (e *env) export(tags []tagged, disks ...string) func(disk, tag string) string {
	e.Helper()
	socket := filepath.Join(e.dir, "nbd-"+tags[0].name+".sock")
	args := []string{"export", "--listen", "unix:" + socket}
	for _, t := range tags {
		for _, d := range disks {
			args = append(args, d+"@"+t.name)
		}
	}
	b, err := harness.StartBackend(e.ctx, suite.store.Cmd(args...), socket)
	e.must(err)
	e.watch(b)
	return func(disk, tag string) string {
		return "nbd+unix:///" + url.PathEscape(disk+"@"+tag) + "?socket=" + socket
	}
}

// copyOut returns what nbdcopy reads.
func (e *env) copyOut(uri string) []byte {
	e.Helper()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(e.ctx, "nbdcopy", uri, "-")
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		e.Fatalf("nbdcopy %s: %v\n%s", uri, err, said.String())
	}
	return out.Bytes()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// rig is a guest with the workload.
type rig struct {
	*harness.Machine
	data, mark string // disks
	servers    []*server
	powerOff   func() error // leaves the disks, stopped, in the tests' store

	cowblk func(args ...string) (string, error) // where the disks are served
	copy   func(tags []tagged) []copied         // while they are
}

// copied is what nbdcopy reads from one tag of the workload's disks.
type copied struct {
	data string // SHA-256 of the whole disk
	mark string // the start of the disk
}

// startWorkload boots a Debian with its guest agent, on a root of its own, and
// starts the workload on two disks of one back-end process.
func (e *env) startWorkload(o harness.MachineOptions, journal, blockSize string) *rig {
	e.Helper()
	r, sockets := e.workloadDisks(blockSize)
	o.CPUs, o.MemoryMiB, o.Disks = 2, 768, sockets
	o.Extra = append(o.Extra, agentPort(e.agentSocket())...)
	r.Machine = e.boot(o)
	r.powerOff = func() error { return r.PowerOff(e.ctx) }
	if o.Boot == harness.BootQuick {
		e.run(r.Machine, startAgent)
	}
	e.run(r.Machine, fmt.Sprintf(startLoad, journal, "/dev/vdb", "/dev/vdc"))
	return r
}

// workloadDisks makes and serves a root and the workload's disks.
func (e *env) workloadDisks(blockSize string) (r *rig, sockets []string) {
	e.Helper()
	r = &rig{
		data: e.disk("data", "--size", "32M", "--block-size", blockSize),
		mark: e.disk("mark", "--size", "1M"),
	}
	r.cowblk = func(args ...string) (string, error) { return suite.store.Run(e.ctx, args...) }
	r.copy = func(tags []tagged) []copied { return e.copyHere(r, tags) }
	root := e.serve(e.disk("root", "--from", imageGolden))
	both, sockets := e.serveAll(r.data, r.mark)
	r.servers = []*server{root, both}
	return r, append([]string{root.Socket}, sockets...)
}

// exportsAProcess is how many tags of each disk one process exports.
const exportsAProcess = 20

// copyTags reads every tag of the workload's disks over NBD. It returns the
// digest of the data, and the transaction that was the last known to be
// committed.
func (e *env) copyTags(r *rig, tags []tagged) (copies map[string]string, marks map[string]int) {
	e.Helper()
	copies, marks = map[string]string{}, map[string]int{}
	// Each tag has its own stack, of as many open files as it has layers.
	for tags := range slices.Chunk(tags, exportsAProcess) {
		for i, c := range r.copy(tags) {
			m, err := strconv.Atoi(strings.TrimRight(c.mark, " "))
			e.must(err)
			copies[tags[i].name], marks[tags[i].name] = c.data, m
		}
	}
	return copies, marks
}

// copyHere copies tags of disks that are served on this machine.
func (e *env) copyHere(r *rig, tags []tagged) (all []copied) {
	e.Helper()
	uri := e.export(tags, r.data, r.mark)
	for _, t := range tags {
		all = append(all, copied{
			data: digest(e.copyOut(uri(r.data, t.name))),
			mark: string(e.copyOut(uri(r.mark, t.name))[:512]),
		})
	}
	return all
}

// finish ends the workload, the guest and the back-ends, and adds the disks'
// last state to the tags: a file system that was unmounted, thus as clean as a
// frozen one.
func (e *env) finish(r *rig, tags []tagged) []tagged {
	e.Helper()
	said := strings.Split(e.run(r.Machine, stopLoad), "\n")
	last, err := strconv.Atoi(said[0])
	e.must(err)
	e.Logf("%d transactions; fio: %s", last, strings.Join(said[1:], "; "))
	e.must(r.powerOff())
	for _, s := range r.servers {
		e.halt(s)
	}
	e.cowblk("promote", r.data, r.mark, "--tag", "end")
	return append(tags, tagged{name: "end", mode: "guest", acknowledged: last})
}

// checkTags compares what fresh guests find in each tag with what was promised
// to the guest that wrote it, with the other disk that was cut at the same
// moment, and with what nbdcopy reads.
func (e *env) checkTags(r *rig, qemu harness.QEMU, tags []tagged, copies map[string]string, marks map[string]int) {
	e.Helper()
	before := 0
	for i, c := range e.attachAll(qemu, r.data, tags) {
		t := tags[i]
		if c.last < t.acknowledged || c.last < before {
			e.Errorf("%s (quiesce %s) holds transactions to %d; %d was acknowledged before the promotion, and %d is in the tag before it",
				t.name, t.mode, c.last, t.acknowledged, before)
		}
		if m, ok := marks[t.name]; ok && (c.last < m || c.last > m+1) {
			e.Errorf("%s (quiesce %s): one disk says that transaction %d is committed and no later one has begun; the other, cut at the same moment, holds %d",
				t.name, t.mode, m, c.last)
		}
		if sum, ok := copies[t.name]; ok && sum != c.sha256 {
			e.Errorf("%s (quiesce %s): nbdcopy reads %s, the guest %s", t.name, t.mode, sum, c.sha256)
		}
		// An empty journal would mean that the file system was not in use.
		if c.replay != (t.mode != "guest") {
			e.Errorf("%s (quiesce %s): journal to replay: %t", t.name, t.mode, c.replay)
		}
		before = c.last
	}
	if before <= tags[0].acknowledged {
		e.Errorf("nothing was committed after the first promotion, with %d transactions", before)
	}
	e.Logf("%d tags, with up to %d transactions", len(tags), before)
}

// Promotions while the guest commits transactions: every tag, attached to a
// fresh guest or read over NBD, is what it must be.
func TestPromoteUnderLoad(t *testing.T) {
	for _, name := range onQEMUs(harness.Debian12, harness.Debian13) {
		// Blocks that are larger than the guest's: each new head is full of copy-ups.
		journal, blockSize := "wal", "64K"
		if name == harness.Debian12 {
			journal, blockSize = "delete", "4K"
		}
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			n := e.countPromotions(6)
			qemu := e.qemu(name)
			r := e.startWorkload(harness.MachineOptions{QEMU: qemu, Boot: harness.BootDirect}, journal, blockSize)
			tags := e.promoteAll(r, n, []way{
				{mode: "none"},
				{mode: "guest", options: []string{"--agent", "unix:" + e.agentSocket(), "--timeout", "60s"}},
			}, nil)
			copies, marks := e.copyTags(r, tags) // while the guest writes
			tags = e.finish(r, tags)
			e.checkTags(r, qemu, tags, copies, marks)
		})
	}
}
