package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// CheckDepth selects how much Check reads.
type CheckDepth int

const (
	// manifests, headers, lengths, fingerprints of the bases, and every map
	CheckMaps CheckDepth = iota
	CheckFast            // the same, but only the maps of heads that were not closed cleanly
	// CheckMaps, and all data of layers, with its checksums, and of images
	CheckFull
)

// CheckOptions for Check; the zero value checks everything in the store and changes nothing.
type CheckOptions struct {
	// Names are images and disks; empty: the whole store, including objects that belong to no disk
	// or image. Two disks with the same head are found only if both are checked.
	Names []string
	Depth CheckDepth
	// Repair applies the remedies that need no guess. Prune also removes layers with data that no
	// disk names; it needs Repair.
	Repair, Prune bool
	// Progress, if not nil, receives the number of bytes read from a file; only with CheckFull.
	Progress func(what string, done, total int64)
}

// Report holds the findings about one image or disk, or about the rest of the store.
type Report struct {
	Kind    string   `json:"kind"`           // KindImage, KindDisk or KindStore
	Name    string   `json:"name,omitempty"` // empty: the store
	Serving *Serving `json:"serving,omitempty"`
	Layers  int      `json:"layers,omitempty"` // of a disk
	Blocks  uint64   `json:"blocks,omitempty"` // owned by its layers
	// AtLeast: a process has the disk open and may have more blocks in memory, or on disk by now.
	AtLeast bool `json:"blocks-at-least,omitempty"`
	// Unclean: the head was not closed cleanly; not an error.
	Unclean  bool               `json:"unclean,omitempty"`
	Notes    []string           `json:"notes,omitempty"` // what was not checked and why, and observations that are not errors
	Problems []*finding.Finding `json:"problems"`
	// Error says why a check or a repair failed: no permission, I/O error.
	Error string `json:"error,omitempty"`
}

// KindStore is the Report.Kind of objects that belong to no image and no disk.
const KindStore = "store"

// CheckReport is the result of Check. It counts a problem of several disks once.
type CheckReport struct {
	Reports    []*Report `json:"checked"`
	Found      int       `json:"found"`
	Repaired   int       `json:"repaired"`
	Repairable int       `json:"repairable"`
	Failed     int       `json:"failed"` // reports with an Error
}

// Left returns the number of remaining problems.
func (r *CheckReport) Left() int { return r.Found - r.Repaired }

// checker is one run of Check.
type checker struct {
	s      *Store
	ctx    context.Context
	o      CheckOptions
	report CheckReport

	manifests map[string]*Manifest    // the readable ones
	users     map[uuid.UUID][]string  // checked disks that name the layer
	layers    map[string]*layerResult // by path of the map
	images    map[string]*Report
	files     *way.FileChecker
	inDoubt   bool // a change of several disks could not be finished: no disk must be opened
}

// Check finds damage, interrupted changes and leftovers. With Repair it fixes what needs no guess;
// without, it changes nothing. It does not disturb a disk that a process has open: it checks only
// the parts that the process cannot change. Problems are not an error. Errors: ErrNotFound,
// ErrInvalid (a name), ErrBusy, and the context's with a partial report.
func (s *Store) Check(ctx context.Context, o CheckOptions) (*CheckReport, error) {
	c := &checker{
		s: s, ctx: ctx, o: o, report: CheckReport{Reports: []*Report{}},
		layers: map[string]*layerResult{}, images: map[string]*Report{}, files: newFileChecker(),
	}
	defer c.files.Close()
	images, disks, err := c.selectNames()
	if err != nil {
		return nil, err
	}
	if exists, err := s.exists(s.dir); err != nil || !exists {
		return &c.report, err
	}
	// First: manifests may depend on transactions that a repair finishes or undoes.
	storeReport := &Report{Kind: KindStore, Problems: []*finding.Finding{}}
	if err := c.staleTxns(storeReport); err != nil {
		return nil, err
	}
	c.inDoubt = storeReport.Error != "" || slices.ContainsFunc(storeReport.Problems,
		func(p *finding.Finding) bool { return p.Status == finding.Left })
	c.notDirectories(storeReport)
	c.readManifests(disks)
	for _, name := range images {
		c.report.Reports = append(c.report.Reports, c.image(name))
	}
	for _, name := range disks {
		d, err := c.disk(name)
		if d != nil {
			c.report.Reports = append(c.report.Reports, d)
		}
		if err != nil {
			c.count()
			return &c.report, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.images)) {
		if !slices.Contains(images, name) { // the base of a checked disk
			c.report.Reports = append(c.report.Reports, c.images[name])
		}
	}
	c.overlaps()
	if len(o.Names) == 0 {
		if err := c.orphans(storeReport); err != nil {
			return nil, err
		}
	}
	if len(o.Names) == 0 || len(storeReport.Problems) > 0 || storeReport.Error != "" {
		c.report.Reports = append(c.report.Reports, storeReport)
	}
	c.count()
	return &c.report, ctx.Err()
}

// selectNames returns the names to check. A disk exists here as soon as its directory does, with or
// without a manifest.
func (c *checker) selectNames() (images, disks []string, err error) {
	if len(c.o.Names) == 0 {
		if images, err = c.s.names(imagesDir); err == nil {
			disks, err = c.s.names(disksDir)
		}
		return images, disks, err
	}
	for _, name := range c.o.Names {
		if err := CheckName("image or disk", name); err != nil {
			return nil, nil, err
		}
		// see notDirectories
		found := c.s.notDirectory(KindImage, name) != nil || c.s.notDirectory(KindDisk, name) != nil
		for _, kind := range []struct {
			of, dir string
			list    *[]string
		}{{KindImage, imagesDir, &images}, {KindDisk, disksDir, &disks}} {
			if c.s.notDirectory(kind.of, name) != nil {
				continue
			}
			exists, err := c.s.exists(c.s.path(kind.dir, name))
			if err != nil {
				return nil, nil, err
			}
			if exists && !slices.Contains(*kind.list, name) {
				*kind.list = append(*kind.list, name)
			}
			found = found || exists
		}
		if !found {
			return nil, nil, c.s.notFound("disk", name)
		}
	}
	return images, disks, nil
}

// readManifests records which disks use each layer. Errors are reported with the disk.
func (c *checker) readManifests(disks []string) {
	c.manifests, c.users = map[string]*Manifest{}, map[uuid.UUID][]string{}
	for _, name := range disks {
		m, err := c.s.Disk(name)
		if err != nil {
			continue
		}
		c.manifests[m.Name] = m
		for _, l := range m.Layers {
			c.users[l.UUID] = append(c.users[l.UUID], m.Name)
		}
	}
}

func (c *checker) count() {
	type same struct{ object, file, what, expected string }
	seen := map[same]bool{}
	for _, k := range c.report.Reports {
		if k.Error != "" {
			c.report.Failed++
		}
		for _, p := range k.Problems {
			key := same{p.Object, p.File, p.What, p.Expected}
			if seen[key] {
				continue
			}
			seen[key] = true
			c.report.Found++
			switch p.Status {
			case finding.Repaired:
				c.report.Repaired++
			case finding.Repairable:
				c.report.Repairable++
			}
		}
	}
}

// add adds a finding about one of k's objects that a person must decide on.
func (k *Report) add(object string, f *finding.Finding) *finding.Finding {
	f.Object, f.Status = object, finding.Left
	k.Problems = append(k.Problems, f)
	return f
}

// addError adds an error that is a finding. Any other error becomes the reason why the check of k
// is incomplete.
func (k *Report) addError(object string, err error) {
	var f *finding.Finding
	if errors.As(err, &f) {
		k.add(object, f)
	} else {
		k.addFailure(err)
	}
}

func (k *Report) addFailure(err error) {
	if k.Error != "" {
		k.Error += "; "
	}
	if errors.Is(err, context.Canceled) {
		k.Error += "interrupted"
		return
	}
	k.Error += err.Error()
}

func (k *Report) addNote(format string, args ...any) {
	k.Notes = append(k.Notes, fmt.Sprintf(format, args...))
}

// applyRemedy carries out the remedy of a problem if this is a repair, and sets the status.
func (c *checker) applyRemedy(k *Report, p *finding.Finding, remedy func() error) {
	p.Status = finding.Repairable
	if !c.o.Repair {
		return
	}
	err := remedy()
	switch {
	case err == nil:
		p.Status, p.Advice = finding.Repaired, ""
	case errors.Is(err, layer.ErrInUse), errors.Is(err, ErrInUse):
		p.Status, p.Advice = finding.Left, "stop the processes that use it, then repair it again"
	default:
		p.Status = finding.Left
		k.addFailure(err)
	}
}

// reportTempFile reports the temporary file of an interrupted replacement of one of k's documents.
// It is garbage if the document is whole. The caller holds the disk's lock; an image needs none.
func (c *checker) reportTempFile(k *Report, whole bool, elem ...string) {
	path := c.s.path(elem...) + vfs.TempSuffix
	exists, err := c.s.exists(path)
	if err != nil {
		k.addFailure(err)
	}
	if !exists {
		return
	}
	p := k.add("temporary file",
		refused(path, "a file that an interrupted change has not put in place", "none", "a file",
			"see whether it is the missing document"))
	p.Leftover = true
	if whole {
		p.Remedy, p.Advice = "remove it: the document that it was to replace is whole", ""
		c.applyRemedy(k, p, func() error {
			return c.s.locked(c.ctx, func() error {
				return errors.Join(c.s.fs.Remove(path), c.s.fs.SyncDir(filepath.Dir(path)))
			})
		})
	}
}
