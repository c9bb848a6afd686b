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

// countPromotions returns how often to promote in each mode: usual, or $COWBLK_PROMOTIONS, for
// which it extends the test's time limit.
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
	ctx, cancel := context.WithTimeout(context.Background(),
		waitLimit+time.Duration(n)*45*time.Second)
	e.ctx, e.stop = context.WithCancelCause(ctx)
	e.Cleanup(cancel)
	return n
}

// quiesceMode is a way to quiesce the guest.
type quiesceMode struct {
	mode    string
	options []string // for "cowblk promote"
}

// promoteAll promotes n times in each way while the workload runs and logs the durations. It calls
// after, unless nil, after each promotion.
func (e *env) promoteAll(r *workloadGuest, n int, ways []quiesceMode,
	after func(mode string)) []promotion {
	e.Helper()
	var tags []promotion
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

// promotion is a completed promotion.
type promotion struct {
	name, mode   string
	acknowledged int           // last transaction committed before the command started
	took         time.Duration // duration of the command
	swap         float64       // microseconds
	quiesced     float64       // milliseconds
}

// promote promotes the workload's disks, which are being served, and returns the result.
func (e *env) promote(r *workloadGuest, name string, w quiesceMode) promotion {
	e.Helper()
	t := promotion{name: name, mode: w.mode, acknowledged: e.acknowledged(r.Machine)}
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
	args := append([]string{"promote", r.data, r.mark, "--tag", name, "--quiesce", w.mode},
		w.options...)
	start := time.Now()
	text, err := r.cowblk(append([]string{"--json"}, args...)...)
	e.must(err)
	e.must(json.Unmarshal([]byte(text), &p))
	t.took, t.swap, t.quiesced = time.Since(start), p.Swap, p.Held
	if p.Tag != name || p.Quiesce != w.mode || len(p.Disks) != 2 ||
		(p.Held > 0) != (w.mode != "none") {
		e.Errorf("cowblk %s answered %+v", strings.Join(args, " "), p)
	}
	return t
}

// spread formats the distribution of values.
func spread(values []float64) string {
	if len(values) == 0 {
		return "none"
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(q*float64(len(values)-1)+0.5)] }
	return fmt.Sprintf("median %.1f, 90 %% %.1f, longest %.1f", at(0.5), at(0.9), at(1))
}

// report logs the durations of promotions.
func (e *env) report(tags []promotion) {
	e.Helper()
	for _, mode := range []string{"none", "guest", "pause"} {
		var took, swap, quiesced []float64
		for _, t := range tags {
			if t.mode == mode {
				took, swap, quiesced = append(took, t.took.Seconds()*1e3), append(swap, t.swap),
					append(quiesced, t.quiesced)
			}
		}
		if len(took) > 0 {
			e.Logf("quiesce %s, %d promotions: command %s ms; swap %s µs; guest quiesced %s ms",
				mode, len(took), spread(took), spread(swap), spread(quiesced))
		}
	}
}

// export starts a process that exports the tags over NBD until the test ends. It returns a function
// that gives the URI of a tag.
func (e *env) export(tags []promotion, disks ...string) func(disk, tag string) string {
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

// copyOut returns the bytes that nbdcopy reads from uri.
func (e *env) copyOut(uri string) []byte {
	e.Helper()
	var out, output bytes.Buffer
	cmd := exec.CommandContext(e.ctx, "nbdcopy", uri, "-")
	cmd.Stdout, cmd.Stderr = &out, &output
	if err := cmd.Run(); err != nil {
		e.Fatalf("nbdcopy %s: %v\n%s", uri, err, output.String())
	}
	return out.Bytes()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// workloadGuest is a guest that runs the workload.
type workloadGuest struct {
	*harness.Machine
	data, mark string // disk names
	servers    []*server
	powerOff   func() error // powers the guest off; the stopped disks are then in the suite's store

	cowblk func(args ...string) (string, error) // runs a command where the disks are served
	copy   func(tags []promotion) []tagCopy     // reads tags while the disks are served
}

// tagCopy is what nbdcopy reads from one tag of the workload's two disks.
type tagCopy struct {
	data string // SHA-256 of the whole disk
	mark string // the start of the disk
}

// startWorkload boots a Debian with a guest agent, on a root disk of its own, and starts the
// workload on two disks of one back-end process.
func (e *env) startWorkload(o harness.MachineOptions, journal, blockSize string) *workloadGuest {
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

// workloadDisks creates and serves a root disk and the workload's disks.
func (e *env) workloadDisks(blockSize string) (r *workloadGuest, sockets []string) {
	e.Helper()
	r = &workloadGuest{
		data: e.disk("data", "--size", "32M", "--block-size", blockSize),
		mark: e.disk("mark", "--size", "1M"),
	}
	r.cowblk = func(args ...string) (string, error) { return suite.store.Run(e.ctx, args...) }
	r.copy = func(tags []promotion) []tagCopy { return e.copyOnHost(r, tags) }
	root := e.serve(e.disk("root", "--from", imageGolden))
	both, sockets := e.serveAll(r.data, r.mark)
	r.servers = []*server{root, both}
	return r, append([]string{root.Socket}, sockets...)
}

// exportsAProcess is the number of tags of each disk that one process exports.
const exportsAProcess = 20

// copyTags reads every tag of the workload's disks over NBD. It returns, by tag, the digest of data
// and the last transaction recorded in mark.
func (e *env) copyTags(r *workloadGuest, tags []promotion) (copies map[string]string,
	marks map[string]int) {
	e.Helper()
	copies, marks = map[string]string{}, map[string]int{}
	// Each tag opens a stack of its own: two files for each layer.
	for tags := range slices.Chunk(tags, exportsAProcess) {
		for i, c := range r.copy(tags) {
			m, err := strconv.Atoi(strings.TrimRight(c.mark, " "))
			e.must(err)
			copies[tags[i].name], marks[tags[i].name] = c.data, m
		}
	}
	return copies, marks
}

// copyOnHost reads tags of disks that are served on the host.
func (e *env) copyOnHost(r *workloadGuest, tags []promotion) (all []tagCopy) {
	e.Helper()
	uri := e.export(tags, r.data, r.mark)
	for _, t := range tags {
		all = append(all, tagCopy{
			data: digest(e.copyOut(uri(r.data, t.name))),
			mark: string(e.copyOut(uri(r.mark, t.name))[:512]),
		})
	}
	return all
}

// finish ends the workload, the guest and the back-ends, and appends the final state of the disks
// to the tags. That file system was unmounted: it is as clean as a frozen one.
func (e *env) finish(r *workloadGuest, tags []promotion) []promotion {
	e.Helper()
	output := strings.Split(e.run(r.Machine, stopLoad), "\n")
	last, err := strconv.Atoi(output[0])
	e.must(err)
	e.Logf("%d transactions; fio: %s", last, strings.Join(output[1:], "; "))
	e.must(r.powerOff())
	for _, s := range r.servers {
		e.stopServer(s)
	}
	e.cowblk("promote", r.data, r.mark, "--tag", "end")
	return append(tags, promotion{name: "end", mode: "guest", acknowledged: last})
}

// checkTags compares the content that fresh guests find in each tag with three things: the
// transactions acknowledged to the guest, the other disk promoted at the same moment, and the
// copies made by nbdcopy.
func (e *env) checkTags(r *workloadGuest, qemu harness.QEMU, tags []promotion,
	copies map[string]string, marks map[string]int) {
	e.Helper()
	before := 0
	for i, c := range e.attachAll(qemu, r.data, tags) {
		t := tags[i]
		if c.last < t.acknowledged || c.last < before {
			e.Errorf("%s (quiesce %s) has transactions up to %d; %d was acknowledged before the promotion, and %d is in the previous tag",
				t.name, t.mode, c.last, t.acknowledged, before)
		}
		if m, ok := marks[t.name]; ok && (c.last < m || c.last > m+1) {
			e.Errorf("%s (quiesce %s): according to one disk transaction %d is committed and at most one later transaction has begun; the other, promoted at the same moment, has %d",
				t.name, t.mode, m, c.last)
		}
		if sum, ok := copies[t.name]; ok && sum != c.sha256 {
			e.Errorf("%s (quiesce %s): nbdcopy reads %s, the guest %s", t.name, t.mode, sum,
				c.sha256)
		}
		// An empty journal would mean that the file system was idle.
		if c.replay != (t.mode != "guest") {
			e.Errorf("%s (quiesce %s): journal to replay: %t", t.name, t.mode, c.replay)
		}
		before = c.last
	}
	if before <= tags[0].acknowledged {
		e.Errorf("no transaction was committed after the first promotion, which has %d", before)
	}
	e.Logf("%d tags, with up to %d transactions", len(tags), before)
}

// Promotions while the guest commits transactions. Every tag is consistent, both attached to a
// fresh guest and read over NBD.
func TestPromoteUnderLoad(t *testing.T) {
	for _, name := range onQEMUs(harness.Debian12, harness.Debian13) {
		// Blocks larger than the guest's: first writes into each new head are copy-ups.
		journal, blockSize := "wal", "64K"
		if name == harness.Debian12 {
			journal, blockSize = "delete", "4K"
		}
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			n := e.countPromotions(6)
			qemu := e.qemu(name)
			r := e.startWorkload(harness.MachineOptions{QEMU: qemu, Boot: harness.BootDirect},
				journal, blockSize)
			tags := e.promoteAll(r, n, []quiesceMode{
				{mode: "none"},
				{mode: "guest", options: []string{"--agent", "unix:" + e.agentSocket(), "--timeout",
					"60s"}},
			}, nil)
			copies, marks := e.copyTags(r, tags) // while the guest writes
			tags = e.finish(r, tags)
			e.checkTags(r, qemu, tags, copies, marks)
		})
	}
}
