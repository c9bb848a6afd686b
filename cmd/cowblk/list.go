package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// listed is one line of "cowblk list --json".
type listed struct {
	Kind    string         `json:"kind"` // image or disk
	Name    string         `json:"name"`
	Size    int64          `json:"size"`           // bytes, as a guest sees it
	Owns    int64          `json:"owns"`           // bytes: an image's allocation, what a disk's head owns
	Base    string         `json:"base,omitempty"` // of a disk
	Depth   int            `json:"depth"`          // layers of a disk, the head included
	Tags    []string       `json:"tags"`
	Users   []string       `json:"users"` // disks on an image
	Created time.Time      `json:"created"`
	Serving *store.Serving `json:"serving,omitempty"`
	Error   string         `json:"error,omitempty"`
	// unread: the error says that it could not be read, and not that anything is wrong with it.
	unread bool
}

func newList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images and disks",
		Long: `List images and disks. OWNS is what an image takes on the file system, and how much a
disk's head has of its own: what the guest wrote since the disk was created or promoted.`,
		Example:           "  cowblk list\n  cowblk list --json | jq -r '.[] | select(.kind == \"disk\").name'",
		Args:              atMost(0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			all, err := listAll(s)
			if a.json {
				return errors.Join(a.printJSON(all), err)
			}
			if len(all) == 0 && err == nil {
				a.say("nothing in store %s yet; to begin: cowblk import FILE NAME", s.Dir())
				return nil
			}
			rows := [][]string{{"NAME", "KIND", "SIZE", "OWNS", "LAYERS", "ON", "STATE"}}
			for _, l := range all {
				rows = append(rows, l.row())
			}
			return errors.Join(a.printTable(rows), err)
		},
	}
}

// listAll reports what can be read, with an error for the rest.
func listAll(s *store.Store) ([]listed, error) {
	all := []listed{}
	roots, err := s.Tree()
	for _, r := range roots {
		if r.Kind == store.KindImage && r.Error == "" {
			l := listed{Kind: r.Kind, Name: r.Name, Size: r.Size, Owns: r.Allocated, Tags: []string{}, Users: append([]string{}, r.Users...)}
			if img, err := s.Image(r.Name); err == nil {
				l.Created = img.Imported
			}
			all = append(all, l)
		}
	}
	disks, _ := s.Disks() // its error is among Tree's
	for _, m := range disks {
		l := listed{Kind: store.KindDisk, Name: m.Name, Size: m.Size, Base: m.Base.String(), Depth: len(m.Layers), Tags: []string{}, Users: []string{}, Created: m.Created}
		for _, sealed := range m.Sealed() {
			if sealed.Tag != "" {
				l.Tags = append(l.Tags, sealed.Tag)
			}
		}
		if u, err := s.LayerUsage(m.Head()); err != nil {
			l.Error, l.unread = err.Error(), !errors.Is(err, store.ErrRefused)
		} else {
			l.Owns = u.Owned
		}
		v, err := s.ServingError(m.Name)
		if l.Serving = v; err != nil { // Tree has returned it, too
			l.Error, l.unread = err.Error(), true
		}
		all = append(all, l)
	}
	return all, err
}

func (l *listed) row() []string {
	depth, on, state := "", l.Base, "stopped"
	if l.Kind == store.KindDisk {
		depth = humanize.Comma(int64(l.Depth))
	}
	switch {
	case l.unread:
		state = "cannot be read: " + l.Error
	case l.Error != "":
		state = "damaged: " + l.Error
	case l.Serving != nil:
		state = l.Serving.String()
	case l.Kind == store.KindImage && len(l.Users) == 0:
		state = "unused"
	case l.Kind == store.KindImage:
		state = "base of " + countText(int64(len(l.Users)), "disk")
	}
	return []string{l.Name, l.Kind, bytesText(l.Size), bytesText(l.Owns), depth, on, state}
}

// agoText is a time for a person.
func agoText(t time.Time) string {
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), humanize.Time(t))
}
