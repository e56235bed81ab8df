"""The data folder: items, interactions, user texts, and the split into train, valid and test.

`folder` reads what `lcrec.prepare` or `lcrec.synthetic` wrote, `splits` decides which interactions
a stage may see, `user_texts` reads what users say of themselves and their reviews, `id_map` what
the shop calls its users and items, and `new_items` checks what joins a catalogue later. `shop`
makes the small synthetic shop of the quickstart.
"""
