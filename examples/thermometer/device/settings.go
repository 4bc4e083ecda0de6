package device

import (
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Unit is what temperatures are shown in. They are kept in Celsius.
type Unit string

// The units.
const (
	Celsius    Unit = "C"
	Fahrenheit Unit = "F"
)

// From converts a temperature in Celsius.
func (u Unit) From(celsius float64) float64 {
	if u == Fahrenheit {
		return celsius*9/5 + 32
	}
	return celsius
}

// ToCelsius converts back.
func (u Unit) ToCelsius(value float64) float64 {
	if u == Fahrenheit {
		return (value - 32) * 5 / 9
	}
	return value
}

// Settings are what a visitor may change.
type Settings struct {
	Name  string  // of the probe: 1 to NameMax printable characters, any of them
	Unit  Unit    // Celsius or Fahrenheit
	Alarm float64 // readings above it are an alarm; Celsius, AlarmMin to AlarmMax
}

// Bounds of settings.
const (
	NameMax  = 40
	AlarmMin = -40.0
	AlarmMax = 85.0
)

// DefaultSettings are those of a device out of the box.
func DefaultSettings() Settings {
	return Settings{Name: "Cold room, north door", Unit: Celsius, Alarm: 8}
}

// ParseSettings reads what a form holds: name, unit, and alarm in that unit.
// Problems has a sentence per field that cannot be accepted, and is nil when all
// can.
func ParseSettings(name, unit, alarm string) (s Settings, problems map[string]string) {
	problem := func(field, text string) {
		if problems == nil {
			problems = make(map[string]string)
		}
		problems[field] = text
	}
	s.Name = strings.TrimSpace(name)
	switch {
	case s.Name == "":
		problem("name", "Please give the probe a name.")
	case !utf8.ValidString(s.Name) || strings.ContainsFunc(s.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		problem("name", "A name has printable characters only.")
	case utf8.RuneCountInString(s.Name) > NameMax:
		problem("name", "A name has at most "+strconv.Itoa(NameMax)+" characters.")
	}
	s.Unit = Unit(unit)
	if s.Unit != Celsius && s.Unit != Fahrenheit {
		problem("unit", "The unit is C or F.")
		s.Unit = Celsius
	}
	value, err := strconv.ParseFloat(strings.Replace(strings.TrimSpace(alarm), ",", ".", 1), 64)
	celsius := math.Round(s.Unit.ToCelsius(value)*100) / 100
	if err != nil || !(celsius >= AlarmMin && celsius <= AlarmMax) { // a NaN is neither
		problem("alarm", "The alarm is a number from "+s.Unit.format(AlarmMin, 0)+" to "+s.Unit.format(AlarmMax, 0)+".")
	} else {
		s.Alarm = celsius
	}
	return s, problems
}

// format is a temperature as a person writes it: `4.37 °C`.
func (u Unit) format(celsius float64, decimals int) string {
	return strconv.FormatFloat(u.From(celsius), 'f', decimals, 64) + " °" + string(u)
}
