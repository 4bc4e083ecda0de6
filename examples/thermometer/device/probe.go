package device

import (
	"math"
	"time"
)

// Reading is one measurement.
type Reading struct {
	Time    time.Time
	Celsius float64
	Door    bool // the door of the cold room is open
}

// Probe is a simulated probe in a cold room. What it measures is a function of
// time and seed alone, so that there is a past to show from the first moment on,
// and tests know what to expect: a base temperature, a wave over the day, drift,
// noise, and every few minutes a door that somebody leaves open for a while.
type Probe struct{ Seed uint64 }

const (
	baseCelsius = 4.2
	dayCelsius  = 0.6  // amplitude over the day, warmest at 15 h UTC
	noise       = 0.06 // standard deviation, about
	warmAir     = 6.5  // how far the room would warm up if the door stayed open
	warmUp      = 45 * time.Second
	coolDown    = 80 * time.Second
	// Time is cut into slots; in two of three of them the door opens once.
	doorSlot  = 3 * time.Minute
	doorOpen  = 12 * time.Second // at least; at most 50 s
	doorSlots = 5                // after that many slots an opening is forgotten
)

// At measures at t.
func (p Probe) At(t time.Time) Reading {
	s := float64(t.UnixMilli()) / 1000
	day := dayCelsius * math.Cos(2*math.Pi*(s/86400-15.0/24))
	phase := float64(p.Seed%1000) / 100
	drift := 0.35*math.Sin(s/1130+phase) + 0.2*math.Sin(s/417+2*phase) + 0.08*math.Sin(s/61)
	// The sum of a few uniform numbers is nearly normal.
	jitter := 0.0
	for i := range uint64(4) {
		jitter += p.uniform(uint64(t.UnixMilli()), i) - 0.5
	}
	warm, open := p.door(t)
	celsius := baseCelsius + day + drift + jitter*noise*math.Sqrt(3) + warm
	return Reading{Time: t, Celsius: math.Round(celsius*100) / 100, Door: open}
}

// door is the warmth that openings have let in and not gone yet.
func (p Probe) door(t time.Time) (warm float64, open bool) {
	slot := t.UnixMilli() / doorSlot.Milliseconds()
	for n := slot - doorSlots; n <= slot; n++ {
		if p.uniform(uint64(n), 10) > 2.0/3 {
			continue
		}
		opened := time.UnixMilli(n * doorSlot.Milliseconds()).Add(scale(doorSlot/2, p.uniform(uint64(n), 11)))
		lasts := doorOpen + scale(38*time.Second, p.uniform(uint64(n), 12))
		since := t.Sub(opened)
		switch {
		case since < 0:
		case since < lasts:
			open = true
			warm += warmAir * (1 - decay(since, warmUp))
		default:
			warm += warmAir * (1 - decay(lasts, warmUp)) * decay(since-lasts, coolDown)
		}
	}
	return warm, open
}

func decay(d, tau time.Duration) float64 { return math.Exp(-float64(d) / float64(tau)) }

func scale(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }

// uniform is a number in [0, 1) that looks random, and is always the same for
// the same a and b (the finaliser of SplitMix64).
func (p Probe) uniform(a, b uint64) float64 {
	x := p.Seed + a*0x9e3779b97f4a7c15 + b*0xd1342543de82ef95
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11) / (1 << 53)
}
