package crash

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cowblk/cow/imagefile"
	"cowblk/cow/store"
)

// importStep is "import". A file with backing files needs the option Backing, and is refused
// without it.
func (pl *player) importStep(s Step) (func() error, error) {
	src, err := parseSource(s.Arg)
	if err != nil {
		return nil, err
	}
	ctx, o := context.Background(), store.ImportOptions{Backing: src.backing()}
	if src.files == 0 {
		o.Format = imagefile.Raw
	}
	unasked := src.backing() && pl.killAfter == 0 && pl.fault == 0
	return func() error {
		if unasked {
			_, err := pl.s.Import(ctx, src.path(), s.Name, store.ImportOptions{})
			if err == nil || !errors.Is(err, store.ErrRefused) && !pl.causedByFault(err) &&
				!pl.mayRefuse(err) {
				pl.reportBroken(
					fmt.Errorf(
						"%s without the option for backing files: expected a refusal, found: %v", s,
						err))
			}
		}
		_, err := pl.s.Import(ctx, src.path(), s.Name, o)
		return err
	}, nil
}

// imported adds an imported image to the world.
func (w *world) imported(s Step) bool {
	src, err := parseSource(s.Arg)
	if err != nil || w.images[s.Name] != nil || w.disks[s.Name] != nil {
		return false
	}
	w.images[s.Name] = src.content()
	return true
}

// onImage reports whether a disk lies on an image.
func (w *world) onImage(image string) bool {
	for _, d := range w.disks {
		if d.image == image {
			return true
		}
	}
	return false
}

// imageInUse notes that the removal of an image was refused because a disk lies on it.
func imageInUse(what, image string) *note {
	return &note{text: "refused: " + what, step: func(o *Oracle, _ int) {
		o.states = o.states[:o.before]
		for _, w := range o.states {
			if w.images[image] != nil && w.onImage(image) {
				return
			}
		}
		o.broken = errors.Join(o.broken,
			fmt.Errorf("%s was refused as in use, and no disk lies on the image", what))
	}}
}

// importedImage uses and removes imported images.
func (g *generator) importedImage() {
	switch g.rng.IntN(4) {
	case 0:
		g.add(Step{Verb: "fault", Name: g.randomNumber(120)})
	case 1:
		g.add(Step{Verb: "kill", Name: g.randomNumber(60)})
		g.allClosed()
	}
	g.importAny()
	if g.rng.IntN(2) == 0 {
		p := &plannedDisk{unit: 4096, size: 24 << 10}
		img := g.images[g.rng.IntN(len(g.images))]
		s := Step{Verb: "create", Name: g.name("d"), Arg: img, Size: p.size, Unit: p.unit}
		g.add(s)
		g.disks[s.Name] = p
		g.writes(s.Name, p)
	}
	if len(g.images) > 3 || g.rng.IntN(3) == 0 {
		i := g.rng.IntN(len(g.images))
		g.add(Step{Verb: "remove", Name: g.images[i]}) // refused if a disk lies on it
		g.images = slices.Delete(g.images, i, i+1)
	}
}

func (g *generator) importAny() {
	s := Step{Verb: "import", Name: g.name("i")}
	if g.rng.IntN(4) > 0 {
		s.Arg = fmt.Sprint(1 + g.rng.IntN(longestChain))
		if g.rng.IntN(2) == 0 {
			s.Arg += "+raw"
		}
	}
	g.add(s)
	g.images = append(g.images, s.Name)
}

func (g *generator) allClosed() {
	for _, d := range g.disks {
		d.open = false
	}
}
