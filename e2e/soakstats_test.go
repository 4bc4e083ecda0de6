package e2e

import (
	"fmt"
	"math"
	"testing"
)

// series is one figure of one kind of process, at rest after each cycle. A process
// that was started again is another life: what it holds is compared with itself.
type series struct {
	name    string
	unit    float64 // the figure is shown in these
	harmful float64 // so much more per cycle is a leak, in the figure's own unit
	points  []point
}

type point struct {
	life  int
	cycle float64
	value float64
}

// warmUp is how many samples of each life do not count: caches and pools fill.
const warmUp = 2

func (s *series) add(life, cycle int, value float64) {
	s.points = append(s.points, point{life, float64(cycle), value})
}

// slope is how much the figure grows per cycle, by least squares with a level of its
// own for each life, and half the width of its interval of 99 % confidence. ok is
// false where there is too little to tell.
func (s *series) slope() (slope, half float64, ok bool) {
	lives := make(map[int][]point)
	for _, p := range s.points {
		lives[p.life] = append(lives[p.life], p)
	}
	var xx, xy, yy float64
	freedom := -1
	for _, points := range lives {
		if len(points) < warmUp+2 {
			continue
		}
		points = points[warmUp:]
		freedom += len(points) - 1
		var x, y float64
		for _, p := range points {
			x += p.cycle / float64(len(points))
			y += p.value / float64(len(points))
		}
		for _, p := range points {
			xx += (p.cycle - x) * (p.cycle - x)
			xy += (p.cycle - x) * (p.value - y)
			yy += (p.value - y) * (p.value - y)
		}
	}
	if freedom < 2 || xx == 0 {
		return 0, 0, false
	}
	slope = xy / xx
	residual := max(yy-slope*xy, 0)
	return slope, student99(freedom) * math.Sqrt(residual/float64(freedom)/xx), true
}

// student99 is the 99.5 % point of Student's distribution.
func student99(freedom int) float64 {
	table := []float64{63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845}
	if freedom <= len(table) {
		return table[freedom-1]
	}
	return 2.576 + 5.2/float64(freedom) // within 0.01
}

// verdict says what the slope means, and whether it is a leak.
func (s *series) verdict() (text string, leak bool) {
	slope, half, ok := s.slope()
	if !ok {
		return fmt.Sprintf("%-26s too few samples to tell", s.name), false
	}
	says := "flat"
	switch low := slope - half; {
	case low > s.harmful:
		says, leak = "GROWS", true
	case low > 0:
		says = "grows, by less than what counts as a leak"
	case half > 3*s.harmful:
		says = "flat, as far as so few samples tell"
	}
	return fmt.Sprintf("%-26s %+8.2f ± %.2f per cycle: %s", s.name, slope/s.unit, half/s.unit, says), leak
}

// TestSlope has slopes found, and not found in noise, over the restarts of a process.
func TestSlope(t *testing.T) {
	noise := []float64{1, -2, 0, 2, -1, 0, 1, -1, 2, -2, 0, 1, -1, 1, 0, -2, 1, 0, 1, -1}
	for _, c := range []struct {
		name   string
		growth float64
		leak   bool
	}{{"noise", 0, false}, {"little", 0.1, false}, {"leak", 2, true}} {
		s := series{name: c.name, unit: 1, harmful: 0.5}
		for i, n := range noise {
			life := i / 10
			s.add(life, i, 100*float64(life)+c.growth*float64(i)+n)
		}
		slope, half, ok := s.slope()
		if !ok || math.Abs(slope-c.growth) > half {
			t.Errorf("%s: slope %v ± %v, want %v", c.name, slope, half, c.growth)
		}
		if text, leak := s.verdict(); leak != c.leak {
			t.Errorf("%s: %s", c.name, text)
		}
	}
	few := series{unit: 1}
	few.add(0, 0, 1)
	if _, _, ok := few.slope(); ok {
		t.Error("a slope of one sample")
	}
}
