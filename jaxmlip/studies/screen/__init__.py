"""Screening: properties of thousands of crystals, in one table, whatever is killed."""

from jaxmlip.studies.screen.properties import PROPERTIES as PROPERTIES
from jaxmlip.studies.screen.rows import screen as screen
