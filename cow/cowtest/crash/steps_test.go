package crash

import (
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// Random histories have every step that the comment of Step lists, and no other.
func TestEveryStepIsDrawn(t *testing.T) {
	text, err := os.ReadFile("step.go")
	test.Must(t, err)
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^//\t([^ ].*)$`).FindAllStringSubmatch(string(text),
		-1) {
		form, _, _ := strings.Cut(m[1], "  ")
		for _, step := range strings.Split(form, " | ") {
			verbs, _, _ := strings.Cut(step, " ")
			for _, verb := range strings.Split(verbs, "|") {
				listed[verb] = true
			}
		}
	}
	drawn := map[string]bool{}
	for seed := range uint64(300) {
		for _, s := range Script(rand.New(rand.NewPCG(seed, 1)), nil, 200, "n", seed%2 == 0) {
			drawn[s.Verb] = true
		}
	}
	for verb := range listed {
		if !drawn[verb] {
			t.Errorf("no random script has %s", verb)
		}
		delete(drawn, verb)
	}
	for verb := range drawn {
		t.Errorf("the comment of Step does not list %s", verb)
	}
}
