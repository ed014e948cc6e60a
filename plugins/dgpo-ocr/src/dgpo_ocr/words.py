"""Word lists and sentences for the prompts: short common English words, texts of signs, and sentence templates.

Written for this project.
"""

from __future__ import annotations

__all__ = ["SIGNS", "TEMPLATES", "WORDINGS", "WORDS"]

_WORDS = """
able acid acorn actor agent album alley amber angel apple apron arrow aspen atlas attic aunt autumn award bacon badge
bagel baker bamboo banana banjo barn basil basket beach beacon beard beaver bench berry birch bird biscuit blanket
blossom boat bonus book boot bottle bowl brass bread breeze brick bridge bronze brook broom brush bubble bucket butter
button cabin cable cactus camera camp candle canyon cargo carpet carrot castle cedar cello chalk charm cheese cherry
chess chicken chimney circle circus citrus cliff clock cloud clover coast cobalt cocoa coffee comet compass copper
coral cotton cousin cradle crane cream cricket crown crystal curtain daisy dance dawn deer delta desert diamond dinner
dolphin donkey dragon dream drum eagle early earth east echo elbow ember engine evening falcon family farm feather
fern ferry fiddle field finger fire flag flame flute forest fossil fountain fox friend frost galaxy garden garlic
gentle giant ginger glacier glass globe glove gold goose grape grass gravel guitar hammer harbor harvest hazel heart
hello helmet herb hill hippo honey hope horse hotel house humble ice igloo island ivory ivy jacket jaguar jasmine jazz
jelly jewel jigsaw journey judge juice jungle kayak kettle kind king kitchen kite kitten knight ladder lagoon lake
lamp lantern laurel lava lawn leaf lemon letter library lilac lily lime linen lion lizard lobster lotus lucky lunar
magic magnet mango maple marble market meadow melody melon midnight milk mint mirror mocha moon morning moss mountain
mouse music mustard nature needle nest noble north nutmeg oak oasis ocean olive onion opal opera orange orbit orchard
otter owl paddle palace panda paper parrot pasta peach pearl pebble pencil pepper piano picnic pigeon pillow pilot
pine pizza planet plum pocket poem polar pony poppy potato prairie puppet puzzle quartz queen quiet quilt rabbit radio
rain rainbow raven reef ribbon rice river robin robot rocket rose ruby saddle safari saffron sage sail salad salmon
salt sand school shadow shell ship silk silver singer sister sketch smile snow socks solar song soup south spark spice
spider spring squash star stone storm story street sugar summer sunset swan table tango teapot temple thunder tiger
timber toast tomato torch tower trail train trophy tulip tunnel turtle uncle unicorn valley vanilla velvet village
violet violin walnut water whale wheat willow window winter wizard wolf wonder yarn yellow yogurt zebra zenith
"""

WORDS = tuple(_WORDS.split())
"""Single words, in lower case."""

SIGNS = (
    "open", "closed", "exit", "push", "pull", "stop", "slow", "sale", "sold out", "for rent", "no entry",
    "no parking", "no smoking", "keep left", "keep clear", "wet paint", "wet floor", "mind the gap", "one way",
    "dead end", "do not touch", "way out", "please wait", "please ring bell", "ticket office", "lost property",
    "first aid", "taxi", "bus stop", "platform", "departures", "arrivals", "baggage claim", "grand opening",
    "happy hour", "daily special", "self service", "welcome home", "thank you", "good luck", "happy birthday",
    "merry christmas", "congratulations", "post office", "bakery", "barber", "florist", "pharmacy", "tailor",
    "laundry", "museum", "cinema", "theatre", "diner", "cafe", "fresh fish", "hot dogs", "homemade pie",
    "farm eggs", "vacancy", "reserved", "caution", "danger", "beware of dog",
)  # fmt: skip
"""Words and phrases of signs, in lower case."""

TEMPLATES = (
    'A shop window with a neon sign that says "{}"',
    'A wooden signpost beside a country road with "{}" carved into it',
    'A street at night, a lit billboard above it that reads "{}"',
    'A white coffee mug on a desk, printed with "{}"',
    'A chalkboard outside a restaurant with "{}" written in white chalk',
    'A poster on a brick wall with the large title "{}"',
    'A birthday cake with "{}" written on it in icing',
    'A book on a table, its cover titled "{}"',
    'A red tin sign with "{}" in raised white letters',
    'A person in a black T-shirt that says "{}" in bold print',
    'A banner hung between two trees that reads "{}"',
    'A yellow sticky note on a monitor with the handwritten words "{}"',
    'The side of a delivery van painted with "{}"',
    'A storefront with "{}" in gold letters above the door',
    'A postcard of a sunny beach with "{}" across the sky',
    'A railway station display that shows "{}"',
)
"""Sentences with a place for the text."""

WORDINGS = (
    'The words "{}", large and easy to read, on a plain surface',
    'An image in which the text "{}" can be read clearly',
    'Lettering that spells "{}" on the front of a building',
    'Someone holds up a piece of cardboard; on it is written "{}"',
)
"""Other sentences with a place for the text, which no prompt of `TEMPLATES` uses."""
